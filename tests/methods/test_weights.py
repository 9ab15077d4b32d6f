"""Methods that act on weights: L2-SP, EWC, freezing, merging. Hand-computed on tiny networks, then on a detector."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.data.images import save_image
from ciod.detectors.base import Input
from ciod.detectors.layers.class_layers import ClassConv
from ciod.methods.base.parameters import shared
from ciod.methods.ewc import EWC
from ciod.methods.freeze import Freeze
from ciod.methods.l2sp import L2SP
from ciod.methods.merge import Merge
from tests import fixed

OLD, NEW = ("ant", "bee"), ("cow", "dog")


def grown(name: str = "yolox-pico"):
    torch.manual_seed(0)
    detector = detectors.build(OLD, name=name, size=64)
    detector.grow(NEW)
    return detector


def second_task(method, detector):
    method.attach(detector, detector, None)
    method.begin_task(fixed.task(OLD, NEW))
    return method


def some_batch(seed: int = 0):
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return fixed.batch(fixed.boxes_at_random(seed, [2, 1], classes=4), images)


def steps(method, detector, n: int = 2, decay: float = 0.1) -> torch.optim.Optimizer:
    """n steps as the engine takes them: train mode, batch normalisation updating, weight decay."""
    optimizer = torch.optim.AdamW(
        [p for p in detector.parameters() if p.requires_grad], lr=1e-2, weight_decay=decay, betas=(0.9, 0.999)
    )
    for i in range(n):
        detector.train()
        loss = sum(method.loss(some_batch(i)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return optimizer


# Which parameters are shared -----------------------------------------------------------------------------------------


def test_all_but_new_rows_are_shared():
    detector = grown()
    found = {p.name: p for p in shared(detector, 2)}
    every = dict(detector.named_parameters())
    assert set(every) - set(found) == {n for n in every if "cls" in n and ".blocks.1." in n} != set()
    assert all(p.rows is None for p in found.values())
    assert {n for n, p in found.items() if p.of_classes} == {n for n in every if "cls" in n and ".blocks.0." in n}


def test_rows_of_a_full_head_are_shared_in_part():
    torch.manual_seed(0)
    full = detectors.build(OLD + NEW, name="yolox-pico", size=64)
    rows = {p.name: p for p in shared(full, 2) if p.of_classes}
    assert rows
    for part in rows.values():
        kept = part.kept(torch.ones_like(part.tensor))
        assert (kept[:2] == 1).all() and (kept[2:] == 0).all()


# L2-SP ---------------------------------------------------------------------------------------------------------------


def test_l2sp_is_half_lambda_times_the_squared_way():
    detector = grown()
    method = second_task(L2SP(weight=0.5), detector)
    batch = some_batch()
    assert method.loss(batch)["l2sp"].item() == 0
    with torch.no_grad():
        for layer in detector.class_layers():
            layer.tensor[0] += 2.0  # row 0 of every tensor with rows: an old class in block 0, a new one in block 1
    moved = sum(r.tensor[0].numel() for r in detector.class_layers() if r.first == 0)
    assert method.loss(batch)["l2sp"].item() == pytest.approx(0.25 * 4 * moved)


def test_the_first_task_has_no_penalty():
    detector = grown()
    for method in (L2SP(), EWC()):
        method.attach(detector, detector, None)
        method.begin_task(fixed.task((), OLD + NEW))
        assert set(method.loss(some_batch())) == {"cls", "box", "obj"}


# EWC -----------------------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """loss = (w · x - y)² with x the image's brightest value / 255 and y the width of its first box."""

    def __init__(self):
        super().__init__()
        self.w, self.idle = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([1.0]))
        self.input = Input(size=32, fill=0.0)
        self.device = torch.device("cpu")

    def forward(self, images):
        assert not self.training
        return self.w * images.float().amax((1, 2, 3)) / 255

    def match(self, outputs, targets):
        return None

    def loss(self, outputs, targets, matches):
        width = targets.boxes[:, 0, 2] - targets.boxes[:, 0, 0]
        return {"a": (outputs - width).square().sum(), "b": 0 * outputs.sum()}

    def class_layers(self):
        return iter(())


def toy_task(tmp_path, images: int = 2):
    """Images of brightness 255 and 127.5-ish, each with a box 10 wide."""
    task = fixed.task((), OLD)
    index = fixed.index_of([(i, "ant") for i in range(images)], OLD, images, folder=tmp_path)
    index = replace(index, sizes=np.full((images, 2), 32, np.int32))
    for file, value in zip(index.files, (255, 51), strict=False):
        save_image(file.with_suffix(".png"), np.full((32, 32, 3), value, np.uint8))
    return replace(task, train=replace(index, files=[f.with_suffix(".png") for f in index.files]))


def test_fisher_of_a_toy(tmp_path):
    # Gradient of (w x - y)²: 2 x (w x - y). Image 1: x = 1: 2 (2 - 10) = -16. Image 2: x = 0.2: 0.4 (0.4 - 10) = -3.84.
    toy = Toy().train()
    task = toy_task(tmp_path)
    method = EWC(normalise=False, quantile=1)
    method.attach(toy, toy, None)
    method.begin_task(task)
    method.end_task(task)
    expected = (16**2 + 3.84**2) / 2
    assert method.state()["fisher"]["w"].item() == pytest.approx(expected, rel=1e-5)
    assert method.state()["fisher"]["idle"].item() == 0
    assert toy.training and toy.w.grad is None
    second = EWC(normalise=False, quantile=1, images=1, weight=3)
    second.load_state(method.state())
    second.attach(toy, toy, None)
    second.begin_task(replace(task, old_classes=OLD, new_classes=NEW))
    with torch.no_grad():
        toy.w += 0.5
    part, there, fisher = second._held[0]
    assert part.name == "w" and (fisher * (part.tensor - there).square()).sum().item() == pytest.approx(
        expected * 0.25, rel=1e-5
    )


def test_online_ewc_adds_up(tmp_path):
    toy, task = Toy(), toy_task(tmp_path)
    method = EWC(normalise=False, quantile=1, decay=0.5)
    method.attach(toy, toy, None)
    method.begin_task(task)
    for _ in range(2):
        method.end_task(task)
    assert method.state()["fisher"]["w"].item() == pytest.approx(1.5 * (16**2 + 3.84**2) / 2, rel=1e-5)


def test_normalised_fisher_has_largest_value_one_and_a_limit():
    method = EWC(quantile=0.8)
    found = method._limited({"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([100.0])})
    assert found["a"].tolist() == [0.25, 0.5, 0.75, 1.0] and found["b"].tolist() == [1.0]
    assert method._limited({"a": torch.zeros(3)})["a"].tolist() == [0, 0, 0]


def test_ewc_penalty_on_a_detector():
    detector = grown()
    method = EWC(weight=4)
    method.load_state({"fisher": {n: torch.full_like(p, 0.5) for n, p in detector.named_parameters()}})
    second_task(method, detector)
    with torch.no_grad():
        for layer in detector.class_layers():
            layer.tensor += 1.0
    moved = sum(r.tensor.numel() for r in detector.class_layers() if r.first == 0)
    assert method.loss(some_batch())["ewc"].item() == pytest.approx(2 * 0.5 * moved)


# Freezing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["head", "class_rows", "new_rows"])
def test_what_is_frozen_stays_bit_equal(part):
    detector = grown()
    before = copy.deepcopy(detector.state_dict())
    method = second_task(Freeze(train=part), detector)
    optimizer = steps(method, detector)
    trunk = {f"{prefix}." for prefix, m in detector.named_modules() if any(m is t for t in detector.trunk())}
    after = detector.state_dict()
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    rows = {r.name: r.first for r in detector.class_layers()}
    if part == "head":
        assert changed and not [n for n in changed if n.startswith(tuple(trunk))]
        assert any("reg_tower" in n for n in changed)
    elif part == "class_rows":
        assert changed == set(rows)
    else:
        assert changed == {n for n, first in rows.items() if first == 2}
    assert len(optimizer.state) == sum(p.requires_grad for p in detector.parameters()) < len(before)
    method.end_task(fixed.task(OLD, NEW))
    assert all(p.requires_grad for p in detector.parameters())


def test_new_rows_leave_old_outputs_bit_equal():
    detector = grown()
    images = some_batch().images
    with torch.no_grad():
        before = detector.eval()(images)
    steps(second_task(Freeze(), detector), detector)
    with torch.no_grad():
        after = detector.eval()(images)
    assert torch.equal(before.logits[..., :2], after.logits[..., :2])
    assert not torch.equal(before.logits[..., 2:], after.logits[..., 2:])
    assert torch.equal(before.boxes, after.boxes) and torch.equal(before.objectness, after.objectness)


def test_new_rows_of_a_full_head_are_refused_in_the_first_task():
    torch.manual_seed(0)
    full = detectors.build(OLD + NEW, name="yolox-pico", size=64)
    method = Freeze()
    method.attach(full, full, None)
    with pytest.raises(CiodError, match=r"new_rows needs detector\.head=grow"):
        method.begin_task(fixed.task((), OLD))


# Merging -------------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """One shared tensor, a buffer of statistics and class rows."""

    def __init__(self):
        super().__init__()
        self.w, self.cls = nn.Parameter(torch.tensor([0.0, 0.0])), ClassConv(1, 1)
        self.register_buffer("mean", torch.tensor([1.0]))

    def class_layers(self):
        return self.cls.rows("cls")


def set_to(model: Two, w, row=None, mean=None) -> None:
    with torch.no_grad():
        model.w.copy_(torch.tensor(w))
        if row is not None:
            model.cls.blocks[0].weight.fill_(row)
        if mean is not None:
            model.mean.fill_(mean)


def two_tasks(method: Merge) -> Two:
    """θ_0 = (0, 0), θ_1 = (3, 4), trained to (0, 1) in the second task; the old row goes from 1 to 3."""
    model = Two()
    for old, new, w, row, mean in (((), ("a",), [3.0, 4.0], 1.0, 2.0), (("a",), ("b",), [0.0, 1.0], 3.0, 6.0)):
        if old:
            model.cls.grow(1)
        method.attach(model, model, None)
        method.begin_task(fixed.task(old, new))
        set_to(model, w, row, mean)
        if old:
            with torch.no_grad():
                model.cls.blocks[1].weight.fill_(9.0)
        method.end_task(fixed.task(old, new))
        state = method.state()
        method = Merge.model_validate(method.model_dump())
        method.load_state(state)
    return model


def test_average():
    model = two_tasks(Merge(m=0.25))
    assert model.w.tolist() == [0.75, 1.75]
    assert model.cls.blocks[0].weight.item() == 2.5 and model.cls.blocks[1].weight.item() == 9.0
    assert model.mean.item() == 5.0


def test_duet():
    # τ_old = (3, 4), norm 5; τ_cur = (0, 1), norm 1; sum (3, 5), norm √34: p = 4 / √34.
    a = 0.5 + 0.25 * np.tanh(4 / np.sqrt(34))
    model = two_tasks(Merge(rule="duet", gamma=0.25))
    assert model.w.tolist() == pytest.approx([3 * a, 4 * a + (1 - a)], rel=1e-6)
    assert model.cls.blocks[0].weight.item() == 1.0 and model.cls.blocks[1].weight.item() == 9.0
    assert model.mean.item() == 4.0


def test_what_did_not_move_stays_bit_equal():
    detector = grown()
    before = copy.deepcopy(detector.state_dict())
    for rule in ("average", "duet"):
        method = second_task(Merge(rule=rule, m=0.3), detector)
        method.load_state({**method.state(), "base": {k: torch.zeros_like(v) for k, v in before.items()}})
        method.end_task(fixed.task(OLD, NEW))
        assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())


def test_the_direction_loss_punishes_going_back():
    # The task before moved every shared tensor by +1; going back by 0.5 costs n · 0.5 a tensor, going on costs nothing.
    detector = grown()
    method = Merge(direction=2.0)
    method.load_state({"earlier": {n: p.detach() - 1 for n, p in detector.named_parameters()}})
    second_task(method, detector)
    pulled = [p for p in shared(detector, 2) if not p.of_classes]
    for way, expected in ((-0.5, 2.0 * 0.5 * sum(p.tensor.numel() for p in pulled)), (0.5, 0.0)):
        moved = copy.deepcopy(detector.state_dict())
        with torch.no_grad():
            for part in pulled:
                part.tensor += way
        assert method.loss(some_batch())["direction"].item() == pytest.approx(expected, rel=1e-4)
        detector.load_state_dict(moved)
