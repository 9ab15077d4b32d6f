"""A batch computed in parts is the whole batch: losses, gradients, statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ciod.config import load as config
from ciod.config.load import Train
from ciod.core.distributed import World
from ciod.core.errors import ConfigError
from ciod.core.types import Batch, Targets
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.base import Detector
from ciod.methods.ilyolox import ILYOLOX
from ciod.training import speed
from ciod.training.accumulate import Accumulated
from tests import fixed
from tests.runs.commands import WORDS, go, weights_of
from tests.training.test_speed import grown, trained


def batch(images: int) -> Batch:
    """Boxes in every other image only: parts have unequal numbers of positives."""
    pixels = torch.randint(0, 256, (images, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = [torch.tensor([[8.0, 8, 40, 44], [20, 20, 60, 60]])[: 2 * (i % 2)] for i in range(images)]
    return fixed.batch(Targets.pad(boxes, [torch.full((len(b),), 3) for b in boxes]), pixels)


def step(parts: int, *, images: int, train_norms: bool = False, name: str = "yolox-pico"):
    """Losses, gradients and the student after a step of a distilling method."""
    settings = Train(accumulate=parts, teacher="exact")
    student = trained(name)
    teacher = speed.make_teacher(student, settings)
    grown(student, train_norms=train_norms)
    method = ILYOLOX(center_score=0.0, other_score=0.0, nms_iou=0.5)
    method.attach(speed.student(student, settings, World()), student, teacher)
    method.begin_task(fixed.task(("a", "b", "c"), ("d",)))
    calls: list[int] = []
    both = (student, teacher.detector)
    for detector in both:
        detector.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    losses = method.loss(batch(images))
    torch.stack(list(losses.values())).sum().backward()
    return losses, {n: p.grad for n, p in student.named_parameters()}, student, calls


@pytest.mark.parametrize(("parts", "images"), [(2, 8), (3, 4)])
def test_two_of_four_are_eight(parts: int, images: int):
    """Normalisers are the batch's: images without boxes make no part weigh more."""
    losses, gradients, _, calls = step(parts, images=images)
    share = -(-images // parts)
    forward = [share] * (images // share) + [images % share] * bool(images % share)
    assert calls == [*forward, *forward, *forward[-2::-1]], "student, teacher, and all but the last once more"
    whole, wanted, _, once = step(1, images=images)
    assert once == [images, images]
    for key, loss in whole.items():
        torch.testing.assert_close(losses[key], loss, rtol=1e-5, atol=0)
    for key, gradient in wanted.items():
        found = gradients[key]
        assert gradient is not None and found is not None, key
        scale = max(1e-3, gradient.abs().max().item())
        assert (found - gradient).abs().max().item() < 1e-4 * scale, key
    assert whole["distill_cls"] > 0 and whole["cls"] > 0


def test_statistics_count_every_part_once():
    _, _, student, _ = step(2, images=4, train_norms=True)
    by_hand = trained().train()
    with torch.no_grad():
        for part in batch(4).images.chunk(2):
            by_hand(part)
    norms = {n: m for n, m in by_hand.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms
    for name, m in norms.items():
        own = student.get_submodule(name)
        assert own.num_batches_tracked == 2 and own.momentum == m.momentum
        mine, theirs = own.state_dict(), m.state_dict()
        assert all(torch.equal(mine[k], theirs[k]) for k in ("running_mean", "running_var")), name


def test_without_gradients_nothing_is_divided():
    seen: list[int] = []
    detector: Detector = trained().eval()
    detector.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with torch.no_grad():
        Accumulated(detector, 2)(batch(4).images)
    assert seen == [4]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=8, val=2, size=64)


def test_a_whole_run_in_parts(data, tmp_path):
    words = ("split=1+1", "epochs=1", "norm=eval", "optimizer=sgd", "ema=0", "weight_decay=0", "lr=1e-3")
    whole, parts = go(data, tmp_path / "whole", *words), go(data, tmp_path / "parts", *words, "accumulate=2")
    a, b = weights_of(whole), weights_of(parts)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5, msg=key)


def test_what_is_refused(data):
    with pytest.raises(ConfigError, match=r"accumulate=8 is larger than the batch \(4\).") as caught:
        config.load(None, [*WORDS, f"data={data}", "accumulate=8", "sync_norm=true"])
    assert "use one of the two, or train.norm=eval" in str(caught.value)
