"""Intervals for shares: every recall is printed with one."""

import math
from collections.abc import Sequence
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)
"""Standard errors from a mean to either end of its 95% interval."""


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of independent questions (Wilson 1927).

    right: how many of n were right. Returns (low, high) in [0, 1]; (0, 1) for n = 0.

    Raises ValueError unless 0 <= right <= n.
    """
    if not 0 <= right <= n:
        raise ValueError(f"{right} right of {n} is no share.")
    if n == 0:
        return 0.0, 1.0
    low, high = _score_interval(right / n, n, confidence)
    # At the ends the exact bounds are 0 and 1; rounding must not push them past.
    return (0.0 if right == 0 else low), (1.0 if right == n else high)


def clustered_wilson(
    counts: Sequence[tuple[int, int]], confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval for questions in clusters, such as several about one person.

    counts: (asked, right) of each cluster. The number of questions is divided by the design effect
    (Kish 1965), estimated as the ratio of the between-cluster variance of the share to that of
    independent questions and taken as at least 1.
    """
    asked = sum(n for n, _ in counts)
    right = sum(k for _, k in counts)
    if asked == 0 or right in (0, asked):
        # Nothing varies, so nothing can be estimated: count clusters as single questions.
        return wilson(len(counts) if right else 0, len(counts), confidence)
    share = right / asked
    m = len(counts)
    if m < 2:
        return wilson(round(share), 1, confidence)
    spread = sum((k - share * n) ** 2 for n, k in counts) * m / (m - 1) / asked**2
    effect = max(1.0, spread / (share * (1 - share) / asked))
    return _score_interval(share, asked / effect, confidence)


def _score_interval(share: float, n: float, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (centre - half) / scale, (centre + half) / scale


def percent(right: int, n: int) -> str:
    """A share with its Wilson interval for people to read: "97.2% [96.0, 98.1]"."""
    if n == 0:
        return "-"
    return interval(right / n, *wilson(right, n))


def interval(share: float, low: float, high: float) -> str:
    """A share and its interval, in per cent."""
    return f"{100 * share:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def clustered_mean(sums: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """The mean over all members of clusters, and its standard error over clusters.

    sums: of each cluster's members; sizes: how many it has. The error is that of a ratio of two
    means over independent clusters, by the delta method; nan for a single one.
    """
    n, k = sum(sizes), len(sums)
    mean = math.fsum(sums) / n
    if k < 2:
        return mean, math.nan
    spread = math.fsum((s - mean * m) ** 2 for s, m in zip(sums, sizes, strict=True))
    return mean, math.sqrt(spread * k / (k - 1)) / n


def clustered_difference(
    one: tuple[Sequence[float], Sequence[int]], other: tuple[Sequence[float], Sequence[int]]
) -> tuple[float, float]:
    """How much larger the other's mean is over the same clusters, and its standard error.

    Both are sums and sizes by cluster, as in `clustered_mean`; a cluster's two sizes may differ.
    By the delta method, of the difference of two ratios; nan for a single cluster.
    """
    residuals = []
    means = []
    for sums, sizes in (one, other):
        mean, _ = clustered_mean(sums, sizes)
        means.append(mean)
        n = sum(sizes)
        residuals.append([(s - mean * m) / n for s, m in zip(sums, sizes, strict=True)])
    k = len(residuals[0])
    spread = math.fsum((b - a) ** 2 for a, b in zip(*residuals, strict=True))
    error = math.sqrt(spread * k / (k - 1)) if k > 1 else math.nan
    return means[1] - means[0], error


def standard_error(right: int, n: int) -> float:
    """Of a share of independent questions; 0 if all are right, or none."""
    share = right / n
    return math.sqrt(share * (1 - share) / n)


def paired_difference(
    own: Sequence[float], other: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The mean difference of two models over the same items, with its interval.

    Of paired differences the normal approximation is good from some hundred items on.

    Raises ValueError unless both have the same items, at least one.
    """
    n = _paired(own, other)
    differences = [a - b for a, b in zip(own, other, strict=True)]
    mean = math.fsum(differences) / n
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / max(1, n - 1) / n)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return mean, mean - half, mean + half


def paired_shares(
    own: Sequence[bool], other: Sequence[bool], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The difference of two shares over the same items, with its interval.

    The interval adds Wilson's ends of either share, less what they share (Newcombe 1998, Statistics
    in Medicine 17:2635, method 10 without correction): it stays good where few items differ.

    Raises ValueError unless both have the same items, at least one.
    """
    n = _paired(own, other)
    one, two = sum(own) / n, sum(other) / n
    both = sum(a and b for a, b in zip(own, other, strict=True)) / n
    spread = math.sqrt(one * (1 - one) * two * (1 - two))
    phi = (both - one * two) / spread if spread else 0.0
    (low_one, high_one), (low_two, high_two) = (
        wilson(round(share * n), n, confidence) for share in (one, two)
    )

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = one - two
    return (
        difference,
        difference - reach(one - low_one, high_two - two),
        difference + reach(two - low_two, high_one - one),
    )


def exact_mcnemar(own: Sequence[bool], other: Sequence[bool]) -> tuple[int, int, float]:
    """How many items only one or only the other has, and McNemar's exact two-sided p.

    p is the chance of a split of these items at least as uneven if either were as likely.

    Raises ValueError unless both have the same items, at least one.
    """
    _paired(own, other)
    only_own = sum(a and not b for a, b in zip(own, other, strict=True))
    only_other = sum(b and not a for a, b in zip(own, other, strict=True))
    n = only_own + only_other
    tail = sum(math.comb(n, k) for k in range(min(only_own, only_other) + 1)) / 2**n
    return only_own, only_other, min(1.0, 2 * tail)


def holm(chances: Sequence[float]) -> list[float]:
    """P values of several comparisons, corrected for their number by Holm's method."""
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    corrected, least = [0.0] * len(chances), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, chances[place] * (len(chances) - rank)))
        corrected[place] = least
    return corrected


def paired_ratio(
    own: Sequence[float], other: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The ratio of two means over the same items, with its interval by the delta method.

    nan where the other mean is 0. Raises ValueError unless both have the same items, at least one.
    """
    n = _paired(own, other)
    mean_own, mean_other = math.fsum(own) / n, math.fsum(other) / n
    if mean_other == 0:
        return math.nan, math.nan, math.nan
    ratio = mean_own / mean_other
    # The linear part of the ratio's error: (a - ratio b) / mean(b), whose mean is 0.
    residuals = [a - ratio * b for a, b in zip(own, other, strict=True)]
    spread = math.sqrt(math.fsum(r**2 for r in residuals) / max(1, n - 1) / n) / mean_other
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return ratio, ratio - half, ratio + half


def _paired(own: Sequence[float], other: Sequence[float]) -> int:
    if len(own) != len(other) or len(own) == 0:
        raise ValueError(f"{len(own)} and {len(other)} items cannot be paired.")
    return len(own)
