"""Exact clusters of numbers on a line."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ciod.core.two_means import two_means


def test_two_clusters_by_hand():
    found = two_means(np.array([0.9, 0.1, 0.3, 0.7]))
    assert found is not None
    assert (found.low, found.high, found.first_high) == pytest.approx((0.2, 0.8, 0.7))


def test_fewer_than_two_values_make_no_clusters():
    assert two_means(np.array([])) is None and two_means(np.array([0.5])) is None


@pytest.mark.parametrize("seed", range(5))
def test_no_other_partition_has_a_smaller_sum_of_squares(seed):
    values = np.random.default_rng(seed).random(9).astype(np.float32)

    def squares(upper: np.ndarray) -> float:
        return sum(((part - part.mean()) ** 2).sum() for part in (values[upper], values[~upper]) if len(part))

    found = two_means(values)
    assert found is not None
    best = min(squares(np.array(choice)) for choice in itertools.product([False, True], repeat=len(values)))
    assert squares(values >= found.first_high) == pytest.approx(best, rel=1e-5)
