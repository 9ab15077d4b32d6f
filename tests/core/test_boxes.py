"""Box arithmetic: hand values, and NMS of a whole batch against torchvision's per image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from ciod.core import boxes as bx

A = torch.tensor([0.0, 0, 10, 10])
CASES = [  # other box, IoU with A, GIoU with A
    ([0, 0, 10, 10], 1, 1),
    ([5, 0, 15, 10], 1 / 3, 1 / 3),  # the hull is the union
    ([5, 5, 15, 15], 25 / 175, 25 / 175 - 50 / 225),
    ([2, 2, 4, 4], 0.04, 0.04),
    ([10, 0, 20, 10], 0, 0),  # they touch
    ([20, 0, 30, 10], 0, -1 / 3),
    ([3, 3, 3, 8], 0, 0),  # no width
    ([8, 8, 2, 2], 0, None),  # turned inside out: no area
]


@pytest.mark.parametrize(("other", "iou", "giou"), CASES)
def test_iou_and_giou_by_hand(other, iou, giou):
    b = torch.tensor(other, dtype=torch.float32)
    for first, second in ((A, b), (b, A)):
        assert bx.iou(first, second).item() == pytest.approx(iou, abs=1e-6)
        if giou is not None:
            assert bx.giou(first, second).item() == pytest.approx(giou, abs=1e-6)


def test_giou_of_the_design_notes():
    """ilyolox.md .10."""
    student = torch.tensor([[10.0, 10, 50, 60], [0, 0, 20, 20]])
    teacher = torch.tensor([[12.0, 8, 52, 58], [5, 5, 25, 25]])
    assert bx.giou(student, teacher).tolist() == pytest.approx([0.834572, 0.311304], abs=1e-6)


def test_degenerate_boxes_give_finite_numbers_and_gradients():
    b = torch.tensor([[3.0, 3, 3, 3], [0, 0, 0, 0]], requires_grad=True)
    other = torch.tensor([[3.0, 3, 3, 3], [1, 1, 2, 2]])
    value = bx.iou(b, other).sum() + bx.giou(b, other).sum()
    value.backward()
    assert value.isfinite() and b.grad is not None and b.grad.isfinite().all()


def test_area_of_inverted_boxes_is_zero():
    assert bx.area(torch.tensor([[0.0, 0, 2, 3], [2, 0, 0, 3], [0, 3, 2, 0], [2, 3, 0, 0]])).tolist() == [6, 0, 0, 0]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_pairwise_equals_torchvision(seed):
    boxes, _, _ = _scene(seed, 2, 9)
    other = boxes.flip(1)[:, :5]
    found = bx.pairwise_iou(boxes, other)
    assert found.shape == (2, 9, 5)
    for i in range(2):
        torch.testing.assert_close(found[i], torchvision.ops.box_iou(boxes[i], other[i]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        bx.giou(boxes[0, :5], other[0]), torchvision.ops.generalized_box_iou(boxes[0, :5], other[0]).diagonal()
    )


def _scene(seed: int, images: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes in crowds, distinct scores, three labels."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 30, (images, n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (images, n, 2))], 2)
    scores = np.stack([rng.permutation(n) for _ in range(images)]) / (n + 1)
    labels = rng.integers(0, 3, (images, n))
    return torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), torch.from_numpy(labels)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([0.2, 0.5, 0.65, 0.95]))
def test_nms_equals_torchvision(seed, n, threshold):
    boxes, scores, labels = _scene(seed, 3, n)
    valid = torch.from_numpy(np.random.default_rng(seed).uniform(size=(3, n)) < 0.8)
    found = bx.nms_keep(boxes, scores, labels, valid, threshold)
    for i in range(3):
        rows = torch.nonzero(valid[i]).squeeze(1)
        kept = torchvision.ops.batched_nms(boxes[i, rows], scores[i, rows], labels[i, rows], threshold)
        assert torch.nonzero(found[i]).squeeze(1).tolist() == sorted(rows[kept].tolist())


def test_nms_follows_a_chain():
    """b falls to a; so c, which only b would have suppressed, stays."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]]])
    one, ok = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    assert bx.nms_keep(boxes, scores, one, ok, 0.5).tolist() == [[True, False, True]]
    labels = torch.tensor([[0, 1, 1]])
    assert bx.nms_keep(boxes, scores, labels, ok, 0.5).tolist() == [[True, True, False]]


def test_nms_takes_the_earlier_of_equal_scores():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]]])
    ok = torch.tensor([[False, True, True]])
    kept = bx.nms_keep(boxes, torch.full((1, 3), 0.5), torch.zeros(1, 3, dtype=torch.long), ok, 0.5)
    assert kept.tolist() == [[False, True, False]]


def test_compact_lists_true_places_in_order():
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    score = torch.tensor([[9.0, 0.1, 9, 0.3, 0.2]] * 3)
    index, valid = bx.compact(mask, score, 10)
    assert index.tolist() == [[1, 3, 4], [0, 0, 0], [0, 0, 0]]
    assert valid.tolist() == [[True] * 3, [False] * 3, [True, False, False]]


def test_compact_takes_the_best_when_there_are_too_many():
    index, valid = bx.compact(torch.ones(1, 5, dtype=torch.bool), torch.tensor([[0.1, 0.5, 0.0, 0.4, 0.3]]), 3)
    assert index.tolist() == [[1, 3, 4]] and valid.all()
    index, valid = bx.compact(torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5), 5)
    assert index.tolist() == [[0, 1, 2, 3, 4]] and valid.all()  # a position with score 0 is listed like any other


def test_compact_of_nothing_has_one_empty_slot():
    index, valid = bx.compact(torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4), 4)
    assert index.shape == (2, 1) and not valid.any()


def test_gather_rows():
    values = torch.arange(24.0).view(2, 4, 3)
    index = torch.tensor([[3, 0], [1, 1]])
    assert bx.gather_rows(values, index).tolist() == [[[9, 10, 11], [0, 1, 2]], [[15, 16, 17], [15, 16, 17]]]
    assert bx.gather_rows(values[..., 0], index).tolist() == [[9, 0], [15, 15]]
    assert bx.gather_rows(values.view(2, 4, 3, 1), index).shape == (2, 2, 3, 1)


def test_marked_places():
    index = torch.tensor([[0, 2, 2, 0], [1, 1, 0, 3]])
    mask = torch.tensor([[False, True, False, False], [True, True, False, True]])
    assert bx.marked(index, mask, 4).tolist() == [[False, False, True, False], [False, True, False, True]]
    assert bx.marked(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.bool), 0).shape == (2, 0)


def test_each_part_has_its_own_rows():
    positions = torch.tensor([7, 0, 9, 1, 8, 2, 3])  # the best first; parts of 4, 5 and 1 positions
    assert bx.best_of_parts(positions, (4, 5, 1), 2).tolist() == [0, 1, 2, 3, 4]
    assert bx.best_of_parts(positions, (4, 5, 1), 1).tolist() == [0, 1, 2]
    assert bx.best_of_parts(positions, (), 3).tolist() == [0, 1, 2]
    assert bx.best_of_parts(positions[:0], (4, 5, 1), 2).tolist() == []


def test_nms_of_a_class_does_not_depend_on_other_classes():
    """With float32 shifts two boxes at the threshold are kept or not by how many classes there are."""
    rng = torch.Generator().manual_seed(0)
    low = torch.rand(40, 2, generator=rng) * 30 + 500
    own = torch.cat([low, low + 20 + torch.rand(40, 2, generator=rng)], 1)
    score = torch.rand(40, generator=rng).sort(descending=True).values
    iou = bx.pairwise_iou(own.double(), own.double())
    differ = 0
    for value in iou.triu(1)[iou.triu(1) > 0.2].tolist():
        alone = bx.suppress(own, score, torch.zeros(40, dtype=torch.long), value - 1e-7)
        last = bx.suppress(own, score, torch.full((40,), 79), value - 1e-7)
        assert torch.equal(alone, last)
        shifted = torchvision.ops.batched_nms(own, score, torch.full((40,), 79), value - 1e-7)
        differ += not torch.equal(alone, shifted)
    assert differ, "else the test shows nothing"
