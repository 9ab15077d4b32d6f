"""Statistics of paired differences: is one method better than another, and by how much?

A comparison has few repetitions (blocks), and two methods are compared inside each. Every function is pure and takes
plain numbers. The distributions are SciPy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXACT = 20  # values up to which all patterns of signs are tried: 2^20
DRAWS = 100_000  # random patterns of signs for more


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def t_interval(differences: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean difference; None for fewer than two values.

    Source: Student, The probable error of a mean (Biometrika 1908).
    """
    from scipy import stats

    d = np.asarray(differences, float)
    if len(d) < 2:
        return None
    half = float(stats.t.ppf((1 + level) / 2, len(d) - 1)) * _standard_error(d)
    return Interval(float(d.mean()), float(d.mean()) - half, float(d.mean()) + half)


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t test that the mean difference is 0; None for fewer than two values.

    If all values are equal: 1 if they are 0, else 0.
    """
    from scipy import stats

    d = np.asarray(differences, float)
    if len(d) < 2:
        return None
    error = _standard_error(d)
    if error == 0:
        return 1.0 if d.mean() == 0 else 0.0
    return float(2 * stats.t.sf(abs(d.mean()) / error, len(d) - 1))


def sign_flip(differences: Sequence[float], *, seed: int = 0) -> float | None:
    """Two-sided p that the differences are symmetric about 0: the share of all patterns of signs with a mean at least
    as far from 0. It assumes no distribution. None without values.

    Exact for up to ``EXACT`` values; for more, ``DRAWS`` random patterns and the observed one are counted.
    With n values p cannot be below 2 / 2^n.

    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    d = np.asarray(differences, float)
    if not len(d):
        return None
    seen = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # sums in another order differ in their last bits
    if len(d) > EXACT:
        random = np.random.default_rng(seed)
        beyond = sum(
            int((np.abs(random.choice((-1.0, 1.0), (1000, len(d))) @ d) >= seen).sum()) for _ in range(DRAWS // 1000)
        )
        return (beyond + 1) / (DRAWS + 1)
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= seen).mean())


def smallest_sign_flip(n: int) -> float:
    """The smallest p that ``sign_flip`` can give for ``n`` values."""
    return 2.0 / 2**n if 0 < n <= EXACT else 1 / (DRAWS + 1) if n else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for the number of comparisons, so that the chance of even one false claim stays below the
    level; None stays None and is not counted.

    Source: Holm, A simple sequentially rejective multiple test procedure (Scandinavian Journal of Statistics 1979).
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def equivalence(differences: Sequence[float], margin: float) -> float | None:
    """p of two one-sided t tests (TOST) that the mean difference is outside ± ``margin``: if it is small, the methods
    are equal up to the margin. A large p of a usual test never shows that. None for fewer than two values.

    Source: Schuirmann, A comparison of the two one-sided tests procedure … (J. Pharmacokinetics 1987).
    """
    from scipy import stats

    d = np.asarray(differences, float)
    if len(d) < 2:
        return None
    error = _standard_error(d)
    gaps = (margin + d.mean(), margin - d.mean())  # above −margin, below +margin
    if error == 0:
        return 0.0 if min(gaps) > 0 else 1.0
    return float(max(stats.t.sf(gap / error, len(d) - 1) for gap in gaps))


def bootstrap(draws: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval of a statistic that was computed on resampled data; None without draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    known = np.asarray(draws, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(units: int, draws: int, seed: int = 0) -> np.ndarray:
    """[draws, units] int64: how often each unit (a picture, or a group of them) is drawn with replacement."""
    if not units:
        return np.zeros((draws, 0), np.int64)
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)


def _standard_error(d: np.ndarray) -> float:
    """0 if all values are equal up to rounding."""
    error = float(d.std(ddof=1)) / math.sqrt(len(d))
    return 0.0 if error <= 1e-12 * float(np.abs(d).max(initial=0)) else error
