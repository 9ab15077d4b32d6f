"""Two clusters of numbers: separates low from high scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TwoMeans(NamedTuple):
    """The means of both clusters, and the smallest value of the upper one."""

    low: float
    high: float
    first_high: float


def two_means(values: np.ndarray) -> TwoMeans | None:
    """Exact 1-D 2-means: the cut of the sorted values with the smallest sum of squares.

    Args:
        values: [n] numbers in any order.

    Returns:
        None for fewer than two values.
    """
    if len(values) < 2:
        return None
    x = np.sort(values.astype(np.float64))
    n = np.arange(1, len(x))
    below = x.cumsum()[:-1]
    above = x.sum() - below
    # Σx² is the same for every cut: the best has the largest Σ (sum²/count).
    cut = int((below**2 / n + above**2 / (len(x) - n)).argmax())
    return TwoMeans(float(below[cut] / n[cut]), float(above[cut] / (len(x) - n[cut])), float(x[cut + 1]))
