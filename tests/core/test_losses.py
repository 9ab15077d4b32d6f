"""Losses: hand values, counts, and what must stay finite."""

from __future__ import annotations

import math

import pytest
import torch

from ciod.core import losses as L


def test_bce_by_hand():
    found = L.bce(torch.tensor([0.0, 0, 2, -3]), torch.tensor([1.0, 0.3, 1, 0]))
    expected = [math.log(2), math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(-3))]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert L.bce(torch.tensor([500.0, -500]), torch.tensor([0.0, 1])).tolist() == [500, 500]  # never infinite


def test_entropy_is_the_floor_of_bce():
    p = torch.tensor([0.5, 0.1, 0.9, 0.0, 1.0])
    assert L.entropy(p).tolist() == pytest.approx([math.log(2), 0.325083, 0.325083, 0, 0], abs=1e-5)
    q = p[:3]
    assert torch.allclose(L.bce(torch.logit(q), q), L.entropy(q), atol=1e-6)
    assert (L.bce(torch.logit(q) + 0.3, q) > L.entropy(q)).all()


def test_iou_square_by_hand():
    a = torch.tensor([[0.0, 0, 10, 10]] * 3)
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    assert L.iou_square(a, b).tolist() == pytest.approx([0, 1 - 1 / 9, 1], abs=1e-6)


def test_iou_square_has_finite_gradients():
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]], requires_grad=True)
    L.iou_square(a, torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 5, 5]])).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()


def test_count_is_at_least_one():
    assert L.count(torch.zeros(2, 3, dtype=torch.bool)).item() == 1
    assert L.count(torch.tensor([[True, False, True]])).item() == 2
    assert L.count(torch.ones(1, dtype=torch.bool)).dtype == torch.float32


@pytest.mark.parametrize(("own", "other", "expected"), [(3, 5, 4.0), (0, 0, 0.5), (0, 1, 0.5), (1, 0, 0.5)])
def test_count_over_two_ranks(monkeypatch, own, other, expected):
    """The sum over ranks (at least 1) divided by the number of ranks. DDP averages the gradients, so a loss divided by
    it is that of the whole batch divided by its count."""
    monkeypatch.setattr(L.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(L.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(L.dist, "all_reduce", lambda n: n.add_(other))
    mask = torch.arange(6) < own
    assert L.count(mask).item() == expected


def test_masked_sum_leaves_out_masked_values_that_are_not_finite():
    values = torch.tensor([1.0, float("nan"), float("inf"), 2], requires_grad=True)
    total = L.masked_sum(values, torch.tensor([True, False, False, True]))
    total.backward()
    assert total.item() == 3 and values.grad is not None and values.grad.tolist() == [1, 0, 0, 1]
    assert L.masked_sum(values, torch.zeros(4, dtype=torch.bool)).item() == 0
