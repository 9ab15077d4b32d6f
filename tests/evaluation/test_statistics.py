"""Statistics of paired differences: values by hand, then SciPy on random ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ciod.evaluation import statistics
from ciod.evaluation.statistics import bootstrap, equivalence, holm, paired_t, resampled, sign_flip, t_interval

SEVERAL = [np.random.default_rng(i).normal(0.3, 1, n).tolist() for i, n in enumerate((3, 5, 10, 12))]


def test_interval_by_hand():
    """1, 2, 3: mean 2, standard error 1/√3, t(2) = 4.3027."""
    found = t_interval([1, 2, 3])
    assert found is not None and found.mean == 2
    assert found.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6) == 2 - found.low
    assert t_interval([1.0]) is None and t_interval([]) is None


def test_paired_t_by_hand():
    """With one degree of freedom t is Cauchy's distribution: p = 1 − 2/π·atan(t). Here t = 1.5 / 0.5 = 3."""
    assert paired_t([1, 2]) == pytest.approx(1 - 2 / np.pi * np.arctan(3))
    assert paired_t([0, 0, 0]) == 1 and paired_t([0.1, 0.1, 0.1]) == 0 and paired_t([1]) is None


@pytest.mark.parametrize("d", SEVERAL)
def test_paired_t_and_its_interval_are_those_of_scipy(d):
    theirs = stats.ttest_1samp(d, 0)
    ours = t_interval(d)
    assert paired_t(d) == pytest.approx(theirs.pvalue) and ours is not None
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_sign_flip_by_hand():
    """±1 ±2 ±3: of 8 sums, 6 and −6 are as far from 0 as 6; of 1, −2, 3 the sum is 2, reached by 6, 4, 2, 0 …"""
    assert sign_flip([1, 2, 3]) == 2 / 8
    assert sign_flip([1, -2, 3]) == 6 / 8, "the sums are ±6, ±4, ±2, 0, 0"
    assert sign_flip([0, 0]) == 1 and sign_flip([]) is None
    assert sign_flip([0.1, 0.2, 0.3]) == 2 / 8, "rounding does not lose the pattern that was seen"


@pytest.mark.parametrize("d", SEVERAL)
def test_sign_flip_is_the_permutation_test_of_scipy(d):
    theirs = stats.permutation_test(
        (np.array(d),), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip(d) == pytest.approx(theirs.pvalue)


def test_many_values_are_flipped_at_random():
    d = np.random.default_rng(0).normal(0.4, 1, 30).tolist()
    found = sign_flip(d)
    assert found == sign_flip(d) and found == pytest.approx(paired_t(d), abs=0.02)
    assert sign_flip([1.0] * 30) == 1 / (statistics.DRAWS + 1) == statistics.smallest_sign_flip(30)


def test_the_smallest_p_follows_from_the_number_of_values():
    for n in (1, 3, 6, 10):
        assert sign_flip(list(range(1, n + 1))) == statistics.smallest_sign_flip(n) == 2 / 2**n
    assert statistics.smallest_sign_flip(0) == 1


def test_holm_by_hand():
    """0.01 × 3, 0.02 × 2, 0.04 × 1; a corrected p is never below that of a smaller one."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0] and holm([]) == [] and holm([0.2]) == [0.2]


def test_equivalence_by_hand():
    """1, −1 within ± 3: standard error 1, t = 3 with one degree of freedom on both sides."""
    one_sided = 0.5 - np.arctan(3) / np.pi
    assert equivalence([1, -1], 3) == pytest.approx(one_sided)
    assert equivalence([0.01] * 4, 0.02) == 0 and equivalence([0.03] * 4, 0.02) == 1 and equivalence([1], 2) is None


@pytest.mark.parametrize("d", SEVERAL)
def test_equivalence_is_the_larger_of_two_one_sided_tests_of_scipy(d):
    above = stats.ttest_1samp(d, -1, alternative="greater").pvalue
    below = stats.ttest_1samp(d, 1, alternative="less").pvalue
    assert equivalence(d, 1) == pytest.approx(max(above, below))


def test_percentile_interval_by_hand():
    assert bootstrap(list(range(101)), level=0.9) == pytest.approx((5, 95))
    assert bootstrap([float("nan"), 1.0]) == (1, 1) and bootstrap([]) is None


def test_resampling_draws_as_many_units_as_there_are():
    counts = resampled(7, 500)
    assert counts.shape == (500, 7) and (counts.sum(1) == 7).all() and counts.mean() == 1
    assert (counts == resampled(7, 500)).all() and (counts != resampled(7, 500, seed=1)).any()


def test_the_bootstrap_of_a_mean_is_that_of_scipy():
    """Percentile intervals of the same statistic from independent draws agree to a tenth of their width."""
    d = np.random.default_rng(3).normal(0, 1, 60)
    ours = bootstrap((resampled(60, 4000) @ d / 60).tolist())
    theirs = stats.bootstrap((d,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.1 * (theirs.high - theirs.low))
