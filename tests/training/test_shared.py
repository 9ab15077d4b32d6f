"""Layers that student and teacher share and that are frozen: computed once, with the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.config.load import Train
from ciod.core.distributed import World
from ciod.core.types import Batch, Targets
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.base import Detector
from ciod.detectors.staged import parts
from ciod.detectors.teacher import Teacher
from ciod.methods.base.method import Method
from ciod.methods.erd import ERD
from ciod.methods.ilyolox import ILYOLOX
from ciod.training import speed
from ciod.training.hooks import Hooks
from tests import fixed
from tests.runs.commands import Killed, go, kill_after, weights_of
from tests.training.test_speed import grown, trained

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def batch() -> Batch:
    box = torch.tensor([[8.0, 8, 40, 44]])
    return fixed.batch(Targets.pad([box] * 2, [torch.tensor([3])] * 2), IMAGES.clone())


def pair(name: str, frozen: int, **settings) -> tuple[Detector, Teacher, Train]:
    """Student and teacher whose first ``frozen`` parts of the trunk stand still, as in a second task."""
    train = Train(**settings)
    student = trained(name)
    student.requires_grad_(True)
    speed.lay_out(student, train)
    for piece in parts(student)[:frozen]:
        for module in piece:
            module.requires_grad_(False)
    teacher = speed.make_teacher(student, train, student=student)
    return grown(student), teacher, train


class Calls:
    """How often each part of the trunk is computed, by either."""

    def __init__(self, student: Detector, teacher: Teacher):
        both = (student, teacher.detector)
        self.student, self.teacher = ([0] * len(parts(d)) for d in both)
        for detector, calls in zip(both, (self.student, self.teacher), strict=True):
            for i, piece in enumerate(parts(detector)):
                piece[0].register_forward_hook(lambda *_, calls=calls, i=i: calls.__setitem__(i, calls[i] + 1))


def step(student: Detector, teacher: Teacher, train: Train, method: Method) -> dict[str, torch.Tensor]:
    method.attach(student, student, teacher)
    method.begin_task(fixed.task(("a", "b", "c"), ("d",)))
    with speed.shared(student, teacher, train):
        losses = method.loss(batch())
        torch.stack(list(losses.values())).sum().backward()
    assert teacher.prefix is None
    return losses


def gentle() -> ILYOLOX:
    return ILYOLOX(center_score=0.0, other_score=0.0, nms_iou=0.5)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [("yolox-pico", 1), ("yolox-pico", 5), ("gfl-pico", 3), ("retinanet-nano", 5), ("fcos-nano", 1), ("yolox-r18", 1)],
)
def test_an_exact_teacher_teaches_bit_for_bit_the_same(name: str, frozen: int):
    kinds: dict[bool, tuple] = {}
    for on in (True, False):
        student, teacher, train = pair(name, frozen, teacher="exact", share_frozen=on)
        calls = Calls(student, teacher)
        losses = step(student, teacher, train, gentle())
        assert calls.student == [1] * 5
        assert calls.teacher == ([0] * frozen + [1] * (5 - frozen) if on else [1] * 5)
        kinds[on] = losses, [p.grad for p in student.parameters()]
    for key, loss in kinds[True][0].items():
        assert torch.equal(loss, kinds[False][0][key]), key
    for mine, theirs in zip(kinds[True][1], kinds[False][1], strict=True):
        assert (mine is None) == (theirs is None) and (mine is None or torch.equal(mine, theirs))


@pytest.mark.parametrize(("kind", "limit"), [("folded", 1e-4), ("bf16", 0.05)])
@pytest.mark.parametrize("frozen", [1, 5])
def test_a_cheap_teacher_takes_over_what_is_not_folded(kind: str, limit: float, frozen: int):
    student, teacher, train = pair("yolox-pico", frozen, teacher=kind)
    norms = [
        m
        for piece in parts(teacher.detector)[:frozen]
        for p in piece
        for m in p.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    every = sum(isinstance(m, nn.BatchNorm2d) for m in teacher.detector.modules())
    assert norms and len(norms) == every - _head_norms(teacher.detector)
    calls = Calls(student, teacher)
    cheap = step(student, teacher, train, gentle())
    assert calls.teacher == [0] * frozen + [1] * (5 - frozen)
    exact = step(*pair("yolox-pico", frozen, teacher="exact", share_frozen=False), gentle())
    assert exact["distill_cls"] > 0
    for key, value in exact.items():
        assert abs(cheap[key].item() - value.item()) <= limit * abs(value.item()), key


def _head_norms(detector: Detector) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in detector.head.modules())


@pytest.mark.parametrize("method", [gentle, lambda: ERD()])
def test_any_method_and_the_next_batch(method):
    """Features of the neck are taught by some; nothing of one batch reaches another."""
    student, teacher, train = pair("gfl-pico", 5, teacher="exact")
    method = method()
    method.attach(student, student, teacher)
    method.begin_task(fixed.task(("a", "b", "c"), ("d",)))
    with speed.shared(student, teacher, train):
        first, second = batch(), batch()
        second.images = second.images.flip(0)
        student(first.images)
        alone = teacher(second.images)
        assert torch.equal(alone.logits, method.teach(second).logits)
        student(second.images)
        calls = Calls(student, teacher)
        assert torch.equal(alone.logits, method.teach(second).logits) and calls.teacher == [0] * 5
        student(second.images)
        second.images.add_(1)  # in place: what was lent is of other pixels
        assert not torch.equal(alone.logits, method.teach(second).logits) and calls.teacher == [1] * 5


def test_nothing_is_shared_while_anything_in_it_moves():
    student, teacher, train = pair("yolox-pico", 0)
    with speed.shared(student, teacher, train):
        assert teacher.prefix is None
    student, teacher, train = pair("yolox-pico", 3, teacher="exact")
    next(student.backbone.stage2.parameters()).requires_grad_(True)
    with speed.shared(student, teacher, train):
        assert teacher.prefix is not None and teacher.prefix.depth == 1
    next(teacher.detector.backbone.stem.buffers()).add_(1e-3)
    with speed.shared(student, teacher, train):
        assert teacher.prefix is None
    student, teacher, train = pair("yolox-pico", 2, teacher="exact")
    student.backbone.stage1.append(nn.Dropout(0.5))
    assert speed.frozen_parts(student) == 0, "what is left to chance is not the same twice"
    student, teacher, train = pair("yolox-pico", 2, share_frozen=False)
    with speed.shared(student, teacher, train):
        assert teacher.prefix is None


@pytest.mark.parametrize("settings", [{"accumulate": 2}, {"compile": True}])
def test_settings_that_cannot_share_share_nothing(settings):
    student, teacher, _ = pair("yolox-pico", 2)
    with speed.shared(student, teacher, Train(**settings)):
        assert teacher.prefix is None


def test_a_student_in_eval_mode_shares_no_maps():
    student, teacher, train = pair("yolox-pico", 2)
    with speed.shared(student, teacher, train):
        student.eval()(IMAGES)
        assert teacher.prefix is not None and teacher.prefix.take(IMAGES) == ([], None)


def test_a_detector_with_other_parts_shares_nothing():
    detector = detectors.build(["a"], name="yolox-pico", size=64)
    detector.backbone = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert parts(detector) == [] and speed.frozen_parts(detector.requires_grad_(False)) == 0


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=8, val=2, size=64)


@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico", "fcos-nano"])
def test_a_frozen_backbone_is_shared_and_the_neck_learns(name):
    """``backbone_lr=0``: no gradients below the neck, which is where sharing ends."""
    detector = detectors.build(["a"], name=name, size=64, backbone_weights=None)
    speed.prepare(detector, Train(backbone_lr=0, trunk_lr=0.5), World())
    backbone, neck = detector.trunk()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(p.requires_grad for p in neck.parameters())
    pieces = [m for piece in parts(detector)[: speed.frozen_parts(detector)] for part in piece for m in part.modules()]
    assert {id(p) for m in pieces for p in m.parameters()} == {id(p) for p in backbone.parameters()}


def test_a_frozen_trunk_in_a_whole_run(data, tmp_path):
    """``trunk_lr=0``: bit-equal with and without sharing, resumed too; weights and statistics of the trunk stay."""
    words = ("split=1+1", "trunk_lr=0", "teacher=exact", "eval_every=1", "save_every=1")
    depths = []

    class Depths(Hooks):
        def on_step(self, at, row):
            teacher = at.method.teacher
            depths.append(teacher and teacher.prefix and teacher.prefix.depth)

    shared = go(data, tmp_path / "on", *words, hooks=[Depths()])
    assert set(depths[: len(depths) // 2]) == {None} and depths[-1] == 5
    plain = go(data, tmp_path / "off", *words, "share_frozen=false")
    with pytest.raises(Killed):
        go(data, tmp_path / "cut", *words, hooks=kill_after(1, 0))
    resumed = go(data, tmp_path / "cut", *words)
    on, off, cut = weights_of(shared), weights_of(plain), weights_of(resumed)
    assert all(torch.equal(v, off[k]) and torch.equal(v, cut[k]) for k, v in on.items())
    before = weights_of(shared, 1)
    trunk = [k for k in before if k.startswith(("backbone.", "neck."))]
    assert trunk and all(torch.equal(before[k], on[k]) for k in trunk)
    assert any(not torch.equal(before[k], on[k]) for k in before if k.startswith("head."))
