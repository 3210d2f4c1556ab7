"""Intervals and tests for accuracies, areas and distances.

Accuracies are fractions. Every interval has coverage `level`. Arrays are (N,), with one number for each sample. scipy
is imported only where it is used, so that reading and writing records stays quick.
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
ALPHA = 0.05


class Interval(NamedTuple):
    low: float
    high: float


class Estimate(NamedTuple):
    """A difference, its interval, `p` of "there is no difference", and `p_drop` of "there is no drop", one-sided.

    `least`: the smallest drop with p_drop < alpha beside the gains, or among changes of the size, that are seen here;
    None if there is none or it is unknown.
    """

    difference: float
    low: float
    high: float
    p: float
    p_drop: float
    least: float | None


def decimals(n: int) -> int:
    """How many decimals tables show of a percentage of `n` images: one, two from 10,000 on."""
    return 2 if n >= 10_000 else 1


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


def mcnemar_drop(losses: int, gains: int) -> float:
    """One-sided exact McNemar p-value of "there is no drop": losses are no likelier than gains."""
    from scipy.stats import binom

    return float(binom.sf(losses - 1, losses + gains, 0.5))


def mcnemar_power(n: int, discordant: float, drop: float, alpha: float = 0.05, tolerance: float = 0.0) -> float:
    """Probability that `mcnemar_drop` gives p < alpha and the drop exceeds `tolerance`.

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
        caught = (binom.sf(losses - 1, changed, 0.5) < alpha) & (2 * losses - changed > tolerance * n + 1e-9)
        power += weight * float(binom.pmf(losses, changed, (1 + drop / discordant) / 2)[caught].sum())
    return power


def paired_accuracies(
    before: NDArray[np.bool_], after: NDArray[np.bool_], level: float = LEVEL, alpha: float = ALPHA
) -> Estimate:
    """`after` - `before`, each (N,) whether the model is right, on the same samples: Tango's interval, McNemar's p."""
    from scipy.stats import binom

    n, gains, losses = len(before), int((after & ~before).sum()), int((before & ~after).sum())
    low, high = tango(gains, losses, n, level)
    more = np.arange(gains, int(before.sum()) + 1)
    found = more[binom.sf(more - 1, more + gains, 0.5) < alpha]
    least = float(found[0] - gains) / n if found.size else None
    return Estimate((gains - losses) / n, low, high, mcnemar(losses, gains), mcnemar_drop(losses, gains), least)


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


def unpaired_accuracies(
    before: tuple[int, int], after: tuple[int, int], level: float = LEVEL, alpha: float = ALPHA
) -> Estimate:
    """`after` - `before`, each (right, n), on different samples.

    p is from Fisher's exact test, whose false-alarm rate never exceeds the level. The interval is method 10 of Newcombe
    1998, Stat. Med. 17:873, which combines the two Wilson intervals.
    """
    from scipy.stats import fisher_exact, hypergeom

    (k0, n0), (k1, n1) = before, after
    old, new = wilson(k0, n0, level), wilson(k1, n1, level)
    share0, share1 = k0 / n0, k1 / n1
    difference = share1 - share0
    right = np.arange(n1 + 1)
    p_drop = hypergeom.sf(k0 - 1, n0 + n1, k0 + right, n0)  # for each number of right answers afterwards
    found = right[p_drop < alpha]
    return Estimate(
        difference,
        max(-1.0, difference - math.hypot(share1 - new.low, old.high - share0)),
        min(1.0, difference + math.hypot(new.high - share1, share0 - old.low)),
        float(fisher_exact([[k0, n0 - k0], [k1, n1 - k1]]).pvalue),
        float(p_drop[k1]),
        share0 - float(found[-1]) / n1 if found.size else None,
    )


# --- means and medians of samples -----------------------------------------------------------------------


def student(middle: float, spread: float, n: int, level: float = LEVEL) -> Interval:
    """Student's interval of the mean of `n` samples, which is `middle`, with the standard deviation `spread`."""
    half = _t(level, n - 1) * spread / math.sqrt(n) if spread > 0 else 0.0
    return Interval(middle - half, middle + half)


def paired_means(before: Floats, after: Floats, level: float = LEVEL, alpha: float = ALPHA) -> Estimate:
    """Mean of `after` - `before`, (N,) each, on the same samples: permutation test, interval of Student's t."""
    change = after - before
    middle, spread = float(change.mean()), float(change.std(ddof=1)) if len(change) > 1 else 0.0
    interval = student(middle, spread, change.size, level)
    changed = change[np.abs(change) > 1e-12]  # zeros keep their value under every sign flip: they change nothing
    p, p_drop = 1.0, 1.0
    if changed.size > 1:
        p, p_drop, _ = _permuted((changed,), _mean, "samples", alpha)
    return Estimate(middle, *interval, p, p_drop, _least_loss(before, np.maximum(change, 0), alpha))


def paired_medians(before: Floats, after: Floats, level: float = LEVEL, alpha: float = ALPHA) -> Estimate:
    """Median of `after` minus median of `before`, on the same samples: permutation test, bootstrap interval.

    Distances may be infinite as long as both medians are finite. An end of the interval is infinite where one of the
    medians is.
    """
    a, b, top = _capped(before, after)
    if len(a) < 2 or np.array_equal(a, b):
        difference = float(np.median(b) - np.median(a))
        return Estimate(difference, difference, difference, 1.0, 1.0, None)
    return _uncapped(_resampled(a, b, _median_gap, paired=True, level=level, alpha=alpha), top)


def unpaired_samples(
    before: Floats,
    after: Floats,
    centre: Callable[..., Any] = np.mean,
    level: float = LEVEL,
    alpha: float = ALPHA,
) -> Estimate:
    """Difference of means, or of medians, of different samples: permutation test, bootstrap interval."""
    a, b, top = _capped(before, after)
    gap = _median_gap if centre is np.median else _mean_gap
    if min(len(a), len(b)) < 2 or np.ptp(np.append(a, b)) == 0:
        difference = float(gap(b, a))
        return Estimate(difference, difference, difference, 1.0, 1.0, None)
    return _uncapped(_resampled(a, b, gap, paired=False, level=level, alpha=alpha), top)


# --- several trained models -----------------------------------------------------------------------------


def seeds(before: Sequence[float], after: Sequence[float], level: float = LEVEL, alpha: float = ALPHA) -> Estimate:
    """Difference of the means over several trained models, one number for each: Welch's t.

    A side of one model is assumed to have the spread of the other (Student's t, pooled). Without any spread p is 0 or
    1: few models without spread do not prove that there is none, so take the `worse` of this and a test over images.
    """
    from scipy.stats import t, ttest_ind_from_stats

    m0, m1 = float(np.mean(before)), float(np.mean(after))
    s0, s1 = (float(np.std(x, ddof=1)) if len(x) > 1 else 0.0 for x in (before, after))
    n0, n1 = len(before), len(after)
    alone = min(n0, n1) == 1
    if s0 == s1 == 0:
        return Estimate(m1 - m0, m1 - m0, m1 - m0, float(m0 == m1), float(m1 >= m0), 0.0)
    v0, v1 = s0 * s0 / n0, s1 * s1 / n1
    if alone:
        pooled = ((n0 - 1) * s0 * s0 + (n1 - 1) * s1 * s1) / (n0 + n1 - 2)
        error, freedom = math.sqrt(pooled * (1 / n0 + 1 / n1)), float(n0 + n1 - 2)
    else:
        error, freedom = math.sqrt(v0 + v1), (v0 + v1) ** 2 / (v0**2 / (n0 - 1) + v1**2 / (n1 - 1))
    half = _t(level, freedom) * error
    p, p_drop = (
        float(ttest_ind_from_stats(m1, s1, n1, m0, s0, n0, equal_var=alone, alternative=side).pvalue)
        for side in ("two-sided", "less")
    )
    return Estimate(m1 - m0, m1 - m0 - half, m1 - m0 + half, p, p_drop, float(t.isf(alpha, freedom)) * error)


def worse(one: Estimate, other: Estimate) -> Estimate:
    """The difference of `one`, with the larger p-values and the wider interval of two tests of it."""
    return Estimate(
        one.difference,
        min(one.low, other.low),
        max(one.high, other.high),
        max(one.p, other.p),
        max(one.p_drop, other.p_drop),
        None if one.least is None or other.least is None else max(one.least, other.least),
    )


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


class _Permuted(NamedTuple):
    p: float
    p_drop: float
    least: float | None


def _permuted(data: tuple[Floats, ...], statistic: Callable[..., Floats], kind: str, alpha: float) -> _Permuted:
    """The permutation test of a difference: p of both sides, of a drop, and the smallest drop that is significant."""
    from scipy.stats import permutation_test

    settings = _resampling(sum(part.size for part in data), alpha)
    test = permutation_test(data, statistic, permutation_type=kind, alternative="less", **settings)
    null = np.sort(test.null_distribution)
    extra = int(null.size == settings["n_resamples"])  # the data themselves; enumeration, which is shorter, has them
    slack = 1e-14 * abs(float(test.statistic))
    above = null.size - np.searchsorted(null, test.statistic - slack)
    p_gain = (int(above) + extra) / (null.size + extra)
    p_of = (np.searchsorted(null, null + 1e-14 * np.abs(null), side="right") + extra) / (null.size + extra)
    found = null[(p_of < alpha) & (null < 0)]
    p = min(1.0, 2 * min(float(test.pvalue), p_gain))
    return _Permuted(p, float(test.pvalue), -float(found[-1]) if found.size else None)


def _least_loss(before: Floats, gains: Floats, alpha: float) -> float | None:
    """The smallest drop of the mean, beside `gains`, that is significant: about, by the normal law of sign flips.

    Samples are lost whole, the smallest first, and at least as many as are needed where nothing is gained.
    """
    lost = np.sort(before[before > 0])
    drop = np.cumsum(lost) - gains.sum()
    spread = np.sqrt(np.cumsum(lost**2) + np.sum(gains**2))
    needed = math.floor(-math.log2(alpha)) + 1
    found = drop[(drop >= -NormalDist().inv_cdf(alpha) * spread) & (np.arange(1, lost.size + 1) >= needed)]
    return float(found[0]) / before.size if found.size else None


def _resampled(
    a: Floats, b: Floats, gap: Callable[..., Floats], *, paired: bool, level: float, alpha: float
) -> Estimate:
    """The difference `gap` of `b` to `a`: permutation test, bootstrap interval."""
    from scipy.stats import bootstrap

    tests = _permuted((b, a), gap, "samples" if paired else "independent", alpha)
    # At least ten resamples lie beyond each end of the interval.
    settings = {**_resampling(a.size + b.size), "n_resamples": max(1_999, math.ceil(20 / (1 - level)))}
    low, high = bootstrap(
        (b, a), gap, paired=paired, method="percentile", confidence_level=level, **settings
    ).confidence_interval
    return Estimate(float(gap(b, a)), float(low), float(high), *tests)


def _resampling(size: int, alpha: float = ALPHA) -> dict[str, Any]:
    """Settings of scipy's resampling: always the same random numbers, at most 32 MB at once.

    9,999 resamples for up to 2,000 samples, and fewer above, but enough for a p well below an `alpha` of 0.0002.
    """
    return {
        "vectorized": True,
        "n_resamples": max(1_999, min(9_999, 20_000_000 // size), math.ceil(20 / max(alpha, 2e-4))),
        "batch": max(1, 4_000_000 // size),
        "rng": np.random.default_rng(0),
    }


def _capped(a: Floats, b: Floats) -> tuple[Floats, Floats, float]:
    """`a` and `b` with a number in place of infinity, far above all finite ones, and that number."""
    both = np.append(a, b)
    top = 1e9 * float(np.max(both[np.isfinite(both)], initial=1e-9))
    return np.minimum(a, top), np.minimum(b, top), top


def _uncapped(found: Estimate, top: float) -> Estimate:
    """`found` with infinity, or no `least`, where `top` is part of a number. No finite gap is 1e-6 of it."""
    low, high = (math.copysign(math.inf, end) if abs(end) > 1e-6 * top else end for end in (found.low, found.high))
    least = None if found.least is None or found.least > 1e-6 * top else found.least
    return found._replace(low=low, high=high, least=least)


def _mean(x: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.mean(x, axis=axis))


def _mean_gap(x: Floats, y: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.mean(x, axis=axis) - np.mean(y, axis=axis))


def _median_gap(x: Floats, y: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.median(x, axis=axis) - np.median(y, axis=axis))
