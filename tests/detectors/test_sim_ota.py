"""SimOTA for a whole batch at once against the rule written as loops over positions (ilyolox.md .3.1)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.assigners import point_lattice
from ciod.detectors.assigners import sim_ota as module
from ciod.detectors.assigners.sim_ota import class_cost, sim_ota
from tests import fixed


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / max(union, 1e-6)


def class_cost_by_hand(logits, objectness, label: int) -> float:
    """BCE of every class, summed: the published cost, not the closed form."""
    total = 0.0
    for c, z in enumerate(logits):
        q = math.sqrt(1 / (1 + math.exp(-z)) / (1 + math.exp(-objectness)))
        log = math.log(q) if c == label else math.log1p(-q)
        total -= max(log, -100)
    return total


def by_hand(outputs: Outputs, i: int, targets: Targets, top: int = 10) -> dict[int, tuple[int, float]]:
    """position → (target, IoU) of image i, in float64."""
    n = int(targets.valid[i].sum())
    boxes, labels = targets.boxes[i, :n].double().tolist(), targets.labels[i, :n].tolist()
    predicted, points = outputs.boxes[i].detach().double().tolist(), outputs.points.double().tolist()
    strides = outputs.strides.tolist()
    logits, objectness = outputs.logits[i].detach().double().tolist(), outputs.objectness[i].detach().double().tolist()
    inside, near = {}, {}
    for p, (x, y) in enumerate(points):
        for j, b in enumerate(boxes):
            inside[p, j] = b[0] < x < b[2] and b[1] < y < b[3]
            cx, cy = (b[0] + b[2]) / 2, (b[1] + b[3]) / 2
            near[p, j] = abs(x - cx) < 2.5 * strides[p] and abs(y - cy) < 2.5 * strides[p]
    candidates = [p for p in range(len(points)) if any(inside[p, j] or near[p, j] for j in range(n))]
    overlap = {(p, j): iou(predicted[p], boxes[j]) for p in candidates for j in range(n)}
    cost = {
        (p, j): class_cost_by_hand(logits[p], objectness[p], labels[j])
        - 3 * math.log(overlap[p, j] + 1e-7)
        + 1e8 * (not (inside[p, j] and near[p, j]))
        for p in candidates
        for j in range(n)
    }
    claims: dict[int, list[int]] = {}
    for j in range(n):
        best = sorted((overlap[p, j] for p in candidates), reverse=True)[:top]
        k = max(1, math.floor(sum(best)))
        for p in sorted(candidates, key=lambda p: cost[p, j])[:k]:
            claims.setdefault(p, []).append(j)
    out = {}
    for p, js in claims.items():
        j = js[0] if len(js) == 1 else min(range(n), key=lambda j: cost[p, j])
        out[p] = (j, overlap[p, j])
    return out


def found_in(matches: Matches, i: int) -> dict[int, tuple[int, float]]:
    ok = matches.valid[i]
    rows = zip(matches.position[i, ok].tolist(), matches.target[i, ok].tolist(), matches.iou[i, ok].tolist())
    return {p: (j, u) for p, j, u in rows}


def good_outputs(seed: int, targets: Targets, classes: int) -> Outputs:
    """Predictions near the boxes, so that k differs from box to box and positions are contested."""
    out = fixed.random_outputs(seed, classes, images=len(targets.boxes))
    rng = np.random.default_rng(seed)
    boxes = out.boxes.clone()
    for i in range(len(boxes)):
        n = int(targets.valid[i].sum())
        if n:
            for p in rng.choice(boxes.shape[1], 40, replace=False):
                noise = torch.from_numpy(rng.normal(0, 2, 4).astype(np.float32))
                boxes[i, p] = targets.boxes[i, rng.integers(n)] + noise
    out.boxes = boxes
    return out


def assert_equal(matches: Matches, outputs: Outputs, targets: Targets) -> None:
    for i in range(len(targets.boxes)):
        found, expected = found_in(matches, i), by_hand(outputs, i, targets)
        assert {p: j for p, (j, _) in found.items()} == {p: j for p, (j, _) in expected.items()}, f"image {i}"
        for p, (_, u) in found.items():
            assert u == pytest.approx(expected[p][1], abs=1e-5)
        assert torch.nonzero(matches.positive[i]).squeeze(1).tolist() == sorted(expected)


def separated(outputs: Outputs, targets: Targets) -> bool:
    """Whether no decision hangs on float32: a box with candidates only outside its centre costs about 1e8, where
    neighbouring floats are 8 apart and ties are arbitrary."""
    for i in range(len(targets.boxes)):
        for j in range(int(targets.valid[i].sum())):
            b = targets.boxes[i, j]
            x, y = outputs.points[:, 0], outputs.points[:, 1]
            inside = (x > b[0]) & (x < b[2]) & (y > b[1]) & (y < b[3])
            near = (x - (b[0] + b[2]) / 2).abs() < 2.5 * outputs.strides
            near &= (y - (b[1] + b[3]) / 2).abs() < 2.5 * outputs.strides
            if int((inside & near).sum()) < 10:
                return False
    return True


def scene(seed: int) -> tuple[Outputs, Targets]:
    """Three images with 0 to 6 boxes each, so that lists are padded; every box covers at least ten cell centres."""
    rng = np.random.default_rng(seed)
    boxes, labels = [], []
    for n in rng.integers(0, 7, 3):
        side = rng.uniform(26, 40, (n, 2))
        corner = rng.uniform(0, 1, (n, 2)) * (64 - side)
        boxes.append(torch.from_numpy(np.concatenate([corner, corner + side], 1).astype(np.float32)))
        labels.append(torch.from_numpy(rng.integers(0, 5, n)))
    targets = Targets.pad(boxes, labels)
    return good_outputs(seed, targets, 5), targets


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_equals_the_rule_written_out(seed):
    outputs, targets = scene(seed)
    assert separated(outputs, targets)
    assert_equal(sim_ota(outputs, targets), outputs, targets)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_a_batch_equals_its_images_alone(seed):
    outputs, targets = scene(seed)
    whole = sim_ota(outputs, targets)
    for i in range(3):
        n = max(1, int(targets.valid[i].sum()))
        own = Targets(targets.boxes[i : i + 1, :n], targets.labels[i : i + 1, :n], targets.valid[i : i + 1, :n])
        assert found_in(whole, i) == found_in(sim_ota(fixed.slice_images(outputs, i), own), 0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_padding_changes_nothing(seed, more):
    outputs, targets = scene(seed)
    padded = targets + fixed.no_boxes(3)
    for _ in range(more):
        padded = padded + fixed.no_boxes(3)
    padded.boxes[~padded.valid] = torch.tensor([0.0, 0, 64, 64])  # rubbish that must not be looked at
    a, b = sim_ota(outputs, targets), sim_ota(outputs, padded)
    assert [found_in(a, i) for i in range(3)] == [found_in(b, i) for i in range(3)]


def test_small_boxes_each_get_a_position():
    """Boxes of a few pixels: no cell centre lies inside some of them, and each still gets its one position."""
    targets = fixed.boxes_at_random(0, [4], classes=3)
    targets.boxes[0] = torch.tensor([[1.0, 1, 3, 3], [20, 20, 23, 23], [41, 9, 43, 11], [57.0, 57, 62, 62]])
    matches = sim_ota(fixed.random_outputs(0, 3, images=1), targets)
    found = found_in(matches, 0)
    assert len(found) >= 3  # two may claim one position
    assert all(0 <= p < matches.positive.shape[1] for p in found)


def test_a_contested_position_goes_to_the_cheaper_box():
    points = torch.tensor([[10.0, 10.0], [50.0, 50.0]])
    boxes = torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60]])
    outputs = fixed.outputs([[3.0, -3], [0, 0]], boxes, [2.0, 0], points=points)
    targets = Targets.pad([torch.tensor([[0.0, 0, 20, 20], [1.0, 1, 20, 20]])], [torch.tensor([1, 0])])
    found = found_in(sim_ota(outputs, targets), 0)
    assert {p: j for p, (j, _) in found.items()} == {0: 1}  # the better class beats the better box
    assert found[0][1] == pytest.approx(361 / 400)


def test_no_gradient_and_nothing_changed():
    outputs = fixed.random_outputs(1, 3, grad=True)
    targets = fixed.boxes_at_random(1, [3, 0], classes=3)
    before = outputs.boxes.detach().clone()
    matches = sim_ota(outputs, targets)
    assert not matches.iou.requires_grad and outputs.boxes.requires_grad
    assert torch.equal(outputs.boxes.detach(), before)


def test_infinite_and_missing_numbers_are_not_assigned():
    outputs = fixed.random_outputs(1, 3, images=1)
    targets = fixed.boxes_at_random(1, [3], classes=3)
    bad = torch.nonzero(sim_ota(outputs, targets).positive[0]).squeeze(1)[:2]
    outputs.boxes[0, bad[0]] = float("nan")
    outputs.logits[0, bad[1]] = float("nan")
    matches = sim_ota(outputs, targets)
    assert not matches.positive[0, bad].any() and matches.positive.any()
    assert matches.iou[matches.valid].isfinite().all()


def test_closed_form_of_the_class_cost():
    outputs = fixed.random_outputs(7, 6, images=2)
    outputs.logits[0, :3] = torch.tensor([60.0, -60, 0, 60, -60, 0])  # where logarithms are clamped
    outputs.objectness[0, :3] = torch.tensor([60.0, -200, 60])
    labels = torch.tensor([[0, 5, 2], [1, 1, 4]])
    found = class_cost(outputs.scores().sqrt(), labels)
    assert found.shape == (2, 3, outputs.logits.shape[1])
    for b in range(2):
        for n in range(3):
            for p in range(3, 84, 5):
                expected = class_cost_by_hand(outputs.logits[b, p].tolist(), outputs.objectness[b, p].item(),
                                              int(labels[b, n]))  # fmt: skip
                assert found[b, n, p].item() == pytest.approx(expected, rel=2e-4)
    assert found.isfinite().all() and found.max() <= 700


# Costs of few pairs, and of all --------------------------------------------------------------------------------------


def any_scene(seed: int) -> tuple[Outputs, Targets]:
    """Boxes of every size, also smaller than a cell and reaching out of the picture, on an oblong one."""
    rng = np.random.default_rng(seed)
    width, height = 32 * rng.integers(1, 5, 2)
    boxes, labels = [], []
    for n in rng.integers(0, 9, 3):
        side = np.exp(rng.uniform(np.log(2), np.log(150), (n, 2)))
        centre = rng.uniform(-0.1, 1.1, (n, 2)) * (width, height)
        boxes.append(torch.from_numpy(np.concatenate([centre - side / 2, centre + side / 2], 1).astype(np.float32)))
        labels.append(torch.from_numpy(rng.integers(0, 5, n)))
    targets = Targets.pad(boxes, labels)
    outputs = fixed.random_outputs(seed, 5, images=3, size=(int(height), int(width)))
    outputs.boxes = outputs.boxes.clone()
    for i in range(3):
        n = int(targets.valid[i].sum())
        for p in rng.choice(outputs.boxes.shape[1], min(12, outputs.boxes.shape[1]), replace=False) if n else ():
            noise = torch.from_numpy(rng.normal(0, 2, 4).astype(np.float32))
            outputs.boxes[i, p] = targets.boxes[i, rng.integers(n)] + noise
    return outputs, targets


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_boxes_of_any_size_by_the_rule(seed):
    """With a penalty that leaves float32 its digits: at 1e8 neighbours are 8 apart, and ties are arbitrary."""
    outputs, targets = any_scene(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FAR", 1e4)
        assert_equal(sim_ota(outputs, targets), outputs, targets)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1.7, 2.5, 4.0]), st.sampled_from([1, 4, 10, 40]))
def test_few_pairs_give_the_same_matches_as_all_pairs(seed, radius, top):
    outputs, targets = any_scene(seed)
    levels = point_lattice.levels_of(outputs.points, outputs.strides)
    assert levels and [len(v.x) * len(v.y) for v in levels] == list(outputs.levels)
    search = module._Search(outputs, targets, radius, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FAR", 1e4)
        (taken, target), (few_taken, few_target) = (
            module._among_all(search, top),
            module._among_few(search, levels, top),
        )
    assert torch.equal(taken, few_taken) and torch.equal(target[taken], few_target[taken])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1.7, 2.5, 4.0]))
def test_rows_and_columns_give_the_same_result_as_all_positions(seed, radius):
    outputs, targets = any_scene(seed)
    levels = point_lattice.levels_of(outputs.points, outputs.strides)
    found = point_lattice.reach(levels, targets.boxes, targets.valid, radius)
    inside, near = module._Search(outputs, targets, radius, 3).reach(targets)
    assert torch.equal(found.candidate, (inside | near).any(1))
    counts = torch.zeros_like(inside, dtype=torch.int).scatter_add_(2, found.prime, found.ok.int())
    assert torch.equal(counts, (inside & near).int()), "each once"


def test_points_that_are_not_a_lattice_are_recognised():
    good = fixed.random_outputs(0, 1).points
    strides = fixed.random_outputs(0, 1).strides
    assert point_lattice.levels_of(good, strides) is not None
    for place, axis in ((5, 0), (9, 1), (70, 0), (83, 1)):
        moved = good.clone()
        moved[place, axis] += 1
        assert point_lattice.levels_of(moved, strides) is None
    assert point_lattice.levels_of(good[:-1], strides[:-1]) is None
    assert point_lattice.levels_of(good[torch.randperm(84)], strides) is None
    assert point_lattice.levels_of(good[:0], strides[:0]) is None


def test_an_oblong_box_with_a_lattice_of_one_row():
    points = torch.tensor([[4.0 + 8 * i, 4] for i in range(6)])
    levels = point_lattice.levels_of(points, torch.full((6,), 8.0))
    assert levels is not None and len(levels) == 1
    level = levels[0]
    assert level.x.tolist() == [4, 12, 20, 28, 36, 44] and level.y.tolist() == [4]
