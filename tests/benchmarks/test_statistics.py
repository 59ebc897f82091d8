"""Intervals against scipy's and against simulation."""

import random

import pytest
from scipy.stats import binomtest

from benchmarks.statistics import clustered_wilson, percent, wilson


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
