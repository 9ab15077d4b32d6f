"""The assignment of queries to objects, against costs that are computed by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ciod.core import boxes as bx
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.query import matching
from tests import fixed

pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")


def outputs(seed: int = 0, *, images: int = 2, queries: int = 4, sets: int = 2, classes: int = 3) -> Outputs:
    g = torch.Generator().manual_seed(seed)
    unit = torch.rand(images, sets * queries, 4, generator=g) * 0.4 + 0.2
    logits = torch.randn(images, sets * queries, classes, generator=g)
    boxes = matching.pixels(unit, (64, 32))
    return Outputs(logits, boxes, torch.zeros(0, 2), torch.zeros(0), answers=queries, frame=(64, 32))


def test_shares_of_the_image_and_back():
    boxes = torch.tensor([[16.0, 4, 48, 20]])
    assert matching.shares(boxes, (64, 32)).tolist() == [[0.5, 0.375, 0.5, 0.5]]
    assert matching.pixels(matching.shares(boxes, (64, 32)), (64, 32)).tolist() == boxes.tolist()


def test_the_cost_of_a_pair_is_the_formulas():
    out = Outputs(
        torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.0, 0, 10, 10]]]), torch.zeros(0, 2), torch.zeros(0),
        answers=1, frame=(100, 50),
    )  # fmt: skip
    target = Targets.pad([torch.tensor([[0.0, 0, 10, 20]])], [torch.tensor([1])])
    p = 1 / (1 + math.exp(-1))
    focal = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    l1 = abs(5 / 50 - 10 / 50) + abs(10 / 50 - 20 / 50)  # centre y and height
    overlap = 0.5  # IoU; the hull is the union
    wanted = 2 * focal + 5 * l1 - 2 * overlap
    assert float(matching.costs(out, target)) == pytest.approx(wanted, abs=1e-5)


def test_every_set_has_the_assignment_of_least_cost():
    out, targets = outputs(), fixed.boxes_at_random(1, [3, 2], classes=3, size=32)
    table = matching.costs(out, targets).numpy()
    found = matching.hungarian(out, targets)
    assert found.position.shape == (2, 2 * 3), "two sets, three places for targets"
    for image, count in enumerate((3, 2)):
        for part in range(2):
            cost = table[image, 4 * part : 4 * part + 4, :count]
            best = min(
                itertools.permutations(range(4), count), key=lambda q, c=cost, n=count: c[list(q), range(n)].sum()
            )
            own = slice(3 * part, 3 * part + 3)
            ok = found.valid[image, own]
            pairs = zip(found.target[image, own][ok].tolist(), found.position[image, own][ok].tolist())
            assert dict(pairs) == {t: 4 * part + q for t, q in enumerate(best)}


def test_more_objects_than_queries_give_one_each():
    out = outputs(queries=2, sets=1, images=1)
    found = matching.hungarian(out, fixed.boxes_at_random(1, [5], classes=3, size=32))
    assert sorted(found.position[0].tolist()) == [0, 1] and found.valid.all() and found.positive.all()


def test_padding_is_matched_after_every_object_and_never_valid():
    out = outputs(queries=3, sets=1, images=2)
    targets = fixed.boxes_at_random(1, [5, 1], classes=3, size=32)
    found = matching.hungarian(out, targets)
    assert found.valid[0].all() and found.valid[1].sum() == 1
    assert found.target[1][found.valid[1]].tolist() == [0]
    assert found.positive.sum(1).tolist() == [3, 1]


def test_a_diverged_query_is_matched_last():
    out = outputs(queries=3, sets=1, images=1)
    boxes = out.boxes.clone()
    boxes[0, 1] = float("nan")
    found = matching.hungarian(replace(out, boxes=boxes), fixed.boxes_at_random(1, [2], classes=3, size=32))
    assert sorted(found.position[0].tolist()) == [0, 2]
    assert np.isfinite(found.iou.numpy()).all()


def test_without_classes_only_boxes_decide():
    out, targets = outputs(), fixed.boxes_at_random(1, [2, 2], classes=1, size=32)
    found = matching.hungarian(replace(out, logits=out.logits[..., :0]), targets)
    assert found.valid.all()


def test_in_the_union_of_all_sets_a_query_has_its_most_frequent_target():
    out, targets = outputs(images=1, queries=4, sets=3), fixed.boxes_at_random(1, [3], classes=3, size=32)
    position = torch.tensor([[0, 1, 2, 4, 5, 7, 8, 9, 10]])  # queries 0, 1, 2; 0, 1, 3; 0, 1, 2
    target = torch.tensor([[2, 1, 0, 2, 0, 0, 1, 2, 0]])
    counted = torch.ones_like(target, dtype=torch.bool)
    counted[0, -1] = False
    given = Matches(position, target, torch.zeros_like(target).float(), counted, counted)
    found, slots = matching.union(out, targets, given, counted)
    assert slots.all() and found.position[0].tolist() == list(range(12))
    assert found.target[0].tolist() == [2, 0, 0, 0] * 3, "of three targets that query 1 had once, the first"
    iou = bx.iou(out.boxes[0, 5], targets.boxes[0, 0])
    assert found.iou[0, 5] == pytest.approx(float(iou))
    counted[0, 2] = False  # now no loss uses query 2
    assert matching.union(out, targets, given, counted)[1][0].tolist() == [True, True, False, True] * 3
    none = Targets.pad([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)])
    nothing = matching.hungarian(out, none)
    assert not matching.union(out, none, nothing, nothing.valid)[1].any()
