"""Intervals against scipy's and against simulation."""

import math
import random

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from benchmarks.statistics import (
    clustered_difference,
    clustered_mean,
    clustered_wilson,
    exact_mcnemar,
    holm,
    paired_difference,
    paired_ratio,
    paired_shares,
    percent,
    standard_error,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "n"), [(0, 10), (10, 10), (1, 1), (973, 1000), (3, 7), (50, 100)]
)
def test_wilson_equals_scipy(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bad_counts_are_refused_and_no_questions_say_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for right, n in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="no share"):
            wilson(right, n)


def test_independent_questions_need_no_clusters() -> None:
    draw = random.Random(0)
    counts = [(1, int(draw.random() < 0.8)) for _ in range(2000)]
    right = sum(k for _, k in counts)
    assert clustered_wilson(counts) == pytest.approx(wilson(right, 2000), abs=1e-3)


def test_questions_that_share_a_person_widen_the_interval() -> None:
    together = [(4, 4 * (person % 5 > 0)) for person in range(250)]
    low, high = clustered_wilson(together)
    expected = wilson(200, 250)  # four questions that always agree are worth one
    assert (low, high) == pytest.approx(expected, abs=2e-3)


def test_the_clustered_interval_covers() -> None:
    """About 95% of intervals hold the truth when people differ."""
    draw = random.Random(1)
    held = 0
    for _ in range(400):
        counts = []
        for _ in range(100):
            skill = draw.choice((0.95, 0.45))
            counts.append((4, sum(draw.random() < skill for _ in range(4))))
        low, high = clustered_wilson(counts)
        held += low <= 0.7 <= high
    assert 0.92 < held / 400 < 0.98


def test_all_right_counts_people() -> None:
    assert clustered_wilson([(4, 4)] * 50) == wilson(50, 50)
    assert clustered_wilson([(4, 0)] * 50) == wilson(0, 50)


def test_percent_reads_well() -> None:
    assert percent(973, 1000) == "97.3% [96.1, 98.1]"
    assert percent(0, 0) == "-"


def test_paired_differences_are_those_of_a_paired_test() -> None:
    rng = np.random.default_rng(0)
    own, other = (rng.random(400) < share for share in (0.4, 0.45))
    mean, low, high = paired_difference(own.astype(int), other.astype(int))
    d = own.astype(int) - other.astype(int)
    t = ttest_1samp(d, 0).confidence_interval(0.95)
    assert mean == pytest.approx(d.mean())
    assert (low, high) == pytest.approx(tuple(t), abs=1e-3)
    assert paired_difference([1, 0], [1, 0]) == (0.0, 0.0, 0.0), "no item differs"


def test_the_interval_of_a_paired_ratio_covers() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        other = rng.random(500) < 0.5
        # Nine of ten items are as before, so pairing narrows the interval.
        own = np.where(rng.random(500) < 0.9, other, rng.random(500) < 0.4)
        _, low, high = paired_ratio(own.astype(int), other.astype(int))
        covered += low <= 0.49 / 0.5 <= high
        assert high - low < 0.1
    assert 0.92 < covered / 400 < 0.98
    assert math.isnan(paired_ratio([1, 0], [0, 0])[0])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ratio([1], [1, 0])


def test_a_standard_error_is_that_of_a_share() -> None:
    assert standard_error(25, 100) == pytest.approx(np.sqrt(0.25 * 0.75 / 100))


def test_the_error_of_a_clustered_mean_is_that_of_drawing_clusters_anew() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, size=400)
    sums = np.array([n * rng.normal(1.0, 0.5) for n in sizes])
    mean, error = clustered_mean(sums.tolist(), sizes.tolist())
    assert mean == pytest.approx(sums.sum() / sizes.sum())
    drawn = rng.integers(0, 400, size=(4_000, 400))
    assert error == pytest.approx((sums[drawn].sum(1) / sizes[drawn].sum(1)).std(), rel=0.05)
    assert math.isnan(clustered_mean([2.0], [3])[1])


def test_a_difference_is_paired_by_cluster_also_where_sizes_differ() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, size=400)
    others = sizes + rng.integers(0, 3, size=400)
    level = rng.normal(1.0, 0.5, size=400)  # of a cluster, which both have
    one, other = sizes * level, others * (level + rng.normal(0.1, 0.1, size=400))
    difference, error = clustered_difference(
        (one.tolist(), sizes.tolist()), (other.tolist(), others.tolist())
    )
    assert difference == pytest.approx(other.sum() / others.sum() - one.sum() / sizes.sum())
    drawn = rng.integers(0, 400, size=(4_000, 400))
    anew = other[drawn].sum(1) / others[drawn].sum(1) - one[drawn].sum(1) / sizes[drawn].sum(1)
    assert error == pytest.approx(anew.std(), rel=0.05)
    # Of the same sizes it is the mean of the differences.
    assert clustered_difference(([1.0, 2.0, 1.4], [10] * 3), ([3.0, 4.0, 3.5], [10] * 3)) == (
        pytest.approx(clustered_mean([2.0, 2.0, 2.1], [10] * 3))
    )
    assert math.isnan(clustered_difference(([2.0], [3]), ([2.0], [3]))[1])


def test_intervals_of_paired_shares_cover_the_truth_where_few_items_differ() -> None:
    draw, covered, n_draws = np.random.default_rng(0), 0, 1_000
    # Both, only the one, only the other, neither.
    chances = (0.70, 0.025, 0.005, 0.27)
    for _ in range(n_draws):
        kinds = draw.choice(4, size=200, p=chances)
        own, other = [bool(k in (0, 1)) for k in kinds], [bool(k in (0, 2)) for k in kinds]
        difference, low, high = paired_shares(own, other)
        assert low <= difference <= high
        covered += low <= chances[1] - chances[2] <= high
    assert 0.935 <= covered / n_draws <= 0.985
    swapped = paired_shares(other, own)
    assert swapped == pytest.approx((-difference, -high, -low))
    _, low, high = paired_shares([True] * 20, [True] * 20)
    assert low < 0 < high, "no item differs, and others might"


def test_mcnemar_is_a_sign_test_of_the_items_that_differ() -> None:
    for more, fewer in ((5, 0), (4, 0), (12, 3), (7, 7), (0, 0)):
        own = [True] * more + [False] * fewer + [True] * 9
        other = [False] * more + [True] * fewer + [True] * 9
        expected = binomtest(more, more + fewer).pvalue if more + fewer else 1.0
        assert exact_mcnemar(own, other) == (more, fewer, pytest.approx(expected))


def test_holm_corrects_the_smallest_most() -> None:
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
