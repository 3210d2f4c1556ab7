"""Intervals and tests for accuracies, areas and distances.

Accuracies are fractions. Every p-value is two-sided, and every interval has coverage `level`. Arrays are (N,), with one
number for each sample. scipy is imported only where it is used, so that reading and writing records stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95


class Interval(NamedTuple):
    low: float
    high: float


class Estimate(NamedTuple):
    """A difference, its interval, and the p-value of "there is no difference"."""

    difference: float
    low: float
    high: float
    p: float


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Score interval of a proportion, in [0, 1] (Wilson 1927, JASA 22:209). `n` must be positive."""
    z = _z(level)
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return Interval(
        0.0 if successes == 0 else max(0.0, middle - half),
        1.0 if successes == n else min(1.0, middle + half),
    )


# --- two accuracies -------------------------------------------------------------------------------------


def mcnemar(losses: int, gains: int) -> float:
    """Exact McNemar p-value (McNemar 1947): without a difference, losses and gains are equally likely.

    `losses` samples stood before and fall now; `gains` samples fell before and stand now.
    """
    from scipy.stats import binomtest

    if losses + gains == 0:
        return 1.0
    return float(binomtest(losses, losses + gains, 0.5).pvalue)


def mcnemar_power(n: int, discordant: float, drop: float, alpha: float = 0.05, tolerance: float = 0.0) -> float:
    """Probability that `mcnemar` gives p < alpha and the drop exceeds `tolerance`.

    Of `n` samples, the expected share `discordant` changes sides, for a true `drop` of accuracy (a fraction, at most
    `discordant`). The result is the exact sum over the numbers of discordant samples and of losses.
    """
    from scipy.stats import binom

    power = 0.0
    for changed in range(1, n + 1):
        weight = float(binom.pmf(changed, n, discordant))
        if weight < 1e-15:
            continue
        losses = np.arange(changed + 1)
        p = np.minimum(1.0, 2 * binom.cdf(np.minimum(losses, changed - losses), changed, 0.5))
        caught = (p < alpha) & (2 * losses - changed > tolerance * n)
        power += weight * float(binom.pmf(losses, changed, (1 + drop / discordant) / 2)[caught].sum())
    return power


def paired_accuracies(before: NDArray[np.bool_], after: NDArray[np.bool_], level: float = LEVEL) -> Estimate:
    """`after` - `before`, each (N,) whether the model is right, on the same samples: Tango's interval, McNemar's p."""
    gains, losses = int((after & ~before).sum()), int((before & ~after).sum())
    low, high = tango(gains, losses, len(before), level)
    return Estimate((gains - losses) / len(before), low, high, mcnemar(losses, gains))


def tango(gains: int, losses: int, n: int, level: float = LEVEL) -> Interval:
    """Score interval for the difference of two paired proportions (Tango 1998, Stat. Med. 17:891)."""
    from scipy.optimize import brentq

    z2 = _z(level) ** 2
    if gains == losses == 0:
        return Interval(-z2 / (n + z2), z2 / (n + z2))
    if gains == n:
        return Interval((n - z2) / (n + z2), 1.0)
    if losses == n:
        return Interval(-1.0, -(n - z2) / (n + z2))

    def excess(delta: float) -> float:
        """(score)^2 - z^2, times the variance: negative inside the interval."""
        b = -gains - losses + (2 * n - gains + losses) * delta
        root = math.sqrt(max(0.0, b * b + 8 * n * losses * delta * (1 - delta)))
        q = (root - b) / (4 * n)  # the maximum-likelihood share of losses under delta
        return float((gains - losses - n * delta) ** 2 - z2 * n * (2 * q + delta * (1 - delta)))

    middle = (gains - losses) / n
    return Interval(float(brentq(excess, -1, middle)), float(brentq(excess, middle, 1)))


def unpaired_accuracies(before: tuple[int, int], after: tuple[int, int], level: float = LEVEL) -> Estimate:
    """`after` - `before`, each (right, n), on different samples.

    p is from Fisher's exact test, whose false-alarm rate never exceeds the level. The interval is method 10 of Newcombe
    1998, Stat. Med. 17:873, which combines the two Wilson intervals.
    """
    from scipy.stats import fisher_exact

    (k0, n0), (k1, n1) = before, after
    old, new = wilson(k0, n0, level), wilson(k1, n1, level)
    share0, share1 = k0 / n0, k1 / n1
    difference = share1 - share0
    return Estimate(
        difference,
        max(-1.0, difference - math.hypot(share1 - new.low, old.high - share0)),
        min(1.0, difference + math.hypot(new.high - share1, share0 - old.low)),
        float(fisher_exact([[k0, n0 - k0], [k1, n1 - k1]]).pvalue),
    )


# --- means and medians of samples -----------------------------------------------------------------------


def paired_means(before: Floats, after: Floats, level: float = LEVEL) -> Estimate:
    """Mean of `after` - `before`, (N,) each, on the same samples: permutation test, interval of Student's t."""
    from scipy.stats import permutation_test

    change = after - before
    low, high = _student(float(change.mean()), float(change.std(ddof=1)) if len(change) > 1 else 0.0, change.size)
    changed = change[change != 0]  # zeros keep their value under every sign flip, so leaving them out changes nothing
    p = 1.0
    if changed.size > 1:
        test = permutation_test((changed,), _mean, permutation_type="samples", **_resampling(changed.size))
        p = float(test.pvalue)
    return Estimate(float(change.mean()), low, high, p)


def paired_medians(before: Floats, after: Floats, level: float = LEVEL) -> Estimate:
    """Median of `after` minus median of `before`, on the same samples: permutation test, bootstrap interval.

    Distances may be infinite as long as both medians are finite.
    """
    from scipy.stats import bootstrap, permutation_test

    a, b = _capped(before, after)
    difference = float(np.median(b) - np.median(a))
    if len(a) < 2 or np.array_equal(a, b):
        return Estimate(difference, difference, difference, 1.0)
    settings = _resampling(a.size)
    test = permutation_test((b, a), _median_gap, permutation_type="samples", **settings)
    low, high = bootstrap(
        (b, a), _median_gap, paired=True, method="percentile", confidence_level=level,
        **{**settings, "n_resamples": 1999},
    ).confidence_interval  # fmt: skip
    return Estimate(difference, float(low), float(high), float(test.pvalue))


def unpaired_samples(
    before: Floats, after: Floats, centre: Callable[..., Any] = np.mean, level: float = LEVEL
) -> Estimate:
    """Difference of means, or of medians, of different samples: permutation test, bootstrap interval."""
    from scipy.stats import bootstrap, permutation_test

    a, b = _capped(before, after)
    gap = _median_gap if centre is np.median else _mean_gap
    difference = float(gap(b, a))
    if min(len(a), len(b)) < 2 or np.ptp(np.append(a, b)) == 0:
        return Estimate(difference, difference, difference, 1.0)
    settings = _resampling(a.size + b.size)
    test = permutation_test((b, a), gap, permutation_type="independent", **settings)
    low, high = bootstrap(
        (b, a), gap, method="percentile", confidence_level=level, **{**settings, "n_resamples": 1999}
    ).confidence_interval
    return Estimate(difference, float(low), float(high), float(test.pvalue))


def seeds(before: Sequence[float], after: Sequence[float], level: float = LEVEL) -> Estimate:
    """Difference of the means over several trained models, one number for each: Welch's t.

    A side of one model is assumed to have the spread of the other (Student's t, pooled). Two sides without any spread
    give p = 0 if they differ, else 1.
    """
    from scipy.stats import ttest_ind_from_stats

    m0, m1 = float(np.mean(before)), float(np.mean(after))
    s0, s1 = (float(np.std(x, ddof=1)) if len(x) > 1 else 0.0 for x in (before, after))
    n0, n1 = len(before), len(after)
    alone = min(n0, n1) == 1
    if s0 == s1 == 0:
        return Estimate(m1 - m0, m1 - m0, m1 - m0, float(m0 == m1))
    v0, v1 = s0 * s0 / n0, s1 * s1 / n1
    if alone:
        pooled = ((n0 - 1) * s0 * s0 + (n1 - 1) * s1 * s1) / (n0 + n1 - 2)
        error, freedom = math.sqrt(pooled * (1 / n0 + 1 / n1)), float(n0 + n1 - 2)
    else:
        error, freedom = math.sqrt(v0 + v1), (v0 + v1) ** 2 / (v0**2 / (n0 - 1) + v1**2 / (n1 - 1))
    half = _t(level, freedom) * error
    p = float(ttest_ind_from_stats(m1, s1, n1, m0, s0, n0, equal_var=alone).pvalue)
    return Estimate(m1 - m0, m1 - m0 - half, m1 - m0 + half, p)


# --- one side against a number --------------------------------------------------------------------------


def share_against(successes: int, n: int, number: float) -> float:
    """Exact binomial p-value of "the proportion is `number`", a fraction in [0, 1]."""
    from scipy.stats import binomtest

    return float(binomtest(successes, n, number).pvalue)


def mean_against(values: Floats, number: float) -> float:
    """Student's t p-value of "the mean is `number`"; 0 or 1 where all values are equal, 1 for a single value."""
    from scipy.stats import ttest_1samp

    if values.size < 2:
        return 1.0
    if np.ptp(values) == 0:
        return float(values[0] == number)
    return float(ttest_1samp(values, number).pvalue)


def median_against(values: Floats, number: float) -> float:
    """Sign-test p-value of "the median is `number`"; values equal to it are left out."""
    return mcnemar(int((values < number).sum()), int((values > number).sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979, Scand. J. Stat. 6:65), in the order given."""
    adjusted = [0.0] * len(p)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = worst
    return adjusted


# --- helpers ---------------------------------------------------------------------------------------------


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _t(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


def _student(middle: float, spread: float, n: int, level: float = LEVEL) -> Interval:
    half = _t(level, n - 1) * spread / math.sqrt(n) if spread > 0 else 0.0
    return Interval(middle - half, middle + half)


def _resampling(size: int) -> dict[str, Any]:
    """Settings of scipy's resampling: always the same random numbers, at most 32 MB at once.

    9,999 resamples for up to 2,000 samples, and fewer above, but at least 1,999, so that p can be as small as 0.001.
    """
    return {
        "vectorized": True,
        "n_resamples": min(9_999, max(1_999, 20_000_000 // size)),
        "batch": max(1, 4_000_000 // size),
        "rng": np.random.default_rng(0),
    }


def _capped(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """`a` and `b` with infinity replaced by a number above all finite ones, which keeps their order."""
    both = np.append(a, b)
    top = 2 * float(np.max(both[np.isfinite(both)], initial=0.5))
    return np.minimum(a, top), np.minimum(b, top)


def _mean(x: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.mean(x, axis=axis))


def _mean_gap(x: Floats, y: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.mean(x, axis=axis) - np.mean(y, axis=axis))


def _median_gap(x: Floats, y: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.median(x, axis=axis) - np.median(y, axis=axis))
