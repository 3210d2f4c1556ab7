"""Intervals and tests against published examples, scipy, exact enumeration and simulation."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from advbench import statistics


@given(st.integers(1, 3000), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert statistics.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_widths_for_the_usual_sizes() -> None:
    """+-9.6 points for 100 images, +-3.1 for 1,000, +-1.0 for 10,000, at worst."""
    for n, half in ((100, 0.096), (1000, 0.031), (10_000, 0.0098)):
        low, high = statistics.wilson(n // 2, n)
        assert (high - low) / 2 == pytest.approx(half, abs=6e-4)


def test_published_paired_example() -> None:
    """Cavo et al. 2012, in Fagerland, Lydersen and Laake, Contingency Tables (2017), chapter 8: 59 6 16 80."""
    assert statistics.mcnemar(16, 6) == pytest.approx(0.052479, abs=1e-6)
    assert statistics.tango(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


def test_published_unpaired_example() -> None:
    """5 of 56 against 0 of 29: Newcombe 1998, table II, example (d), method 10."""
    estimate = statistics.unpaired_accuracies((0, 29), (5, 56))
    assert (estimate.low, estimate.high) == pytest.approx((-0.0381, 0.1926), abs=5e-5)
    assert estimate.p == pytest.approx(stats.fisher_exact([[5, 51], [0, 29]]).pvalue)
    assert estimate.p_drop == pytest.approx(stats.fisher_exact([[0, 29], [5, 51]], alternative="greater").pvalue)


@given(st.integers(1, 400), st.data())
def test_tango_inverts_its_score(n: int, data: st.DataObject) -> None:
    """Each end is where the score statistic, with the likeliest nuisance parameter, is the normal quantile."""
    gains = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - gains))
    low, high = statistics.tango(gains, losses, n)
    difference = (gains - losses) / n
    assert -1 <= low <= difference <= high <= 1
    assert statistics.tango(losses, gains, n) == pytest.approx((-high, -low), abs=1e-9)
    for end in (low, high):
        if abs(end) > 1 - 1e-6:
            continue
        # likelihood of the three cells (q + end, q, 1 - 2q - end) over q, maximised by brute force
        grid = np.linspace(max(0.0, -end), (1 - end) / 2, 200_001)
        with np.errstate(divide="ignore", invalid="ignore"):
            cells = ((gains, grid + end), (losses, grid), (n - gains - losses, 1 - 2 * grid - end))
            likelihood = sum(count * np.log(share) for count, share in cells if count)
        q = grid[np.argmax(np.where(np.isnan(likelihood), -np.inf, likelihood))]
        variance = n * (2 * q + end * (1 - end))
        score = (gains - losses - n * end) / math.sqrt(variance)
        assert abs(score) == pytest.approx(1.959964, rel=2e-3, abs=2e-3)


def test_paired_accuracies_sign() -> None:
    before, after = np.array([True] * 90 + [False] * 10), np.array([True] * 80 + [False] * 20)
    estimate = statistics.paired_accuracies(before, after)
    assert estimate.difference == pytest.approx(-0.1)
    assert estimate.low < -0.1 < estimate.high < 0
    assert estimate.p == pytest.approx(2 / 2**10)  # ten heads in ten throws, or ten tails


def _pairs(rng: np.random.Generator, n: int, discordant: float, drop: float, runs: int) -> np.ndarray:
    """(runs, 2) losses and gains."""
    shares = [(discordant + drop) / 2, (discordant - drop) / 2, 1 - discordant]
    return rng.multinomial(n, shares, size=runs)[:, :2]


def _caught(pairs: np.ndarray, alpha: float, tolerance: int = 0) -> float:
    p = {pair: statistics.mcnemar_drop(*pair) for pair in {(int(a), int(b)) for a, b in pairs}}
    return float(np.mean([p[int(a), int(b)] < alpha and a - b > tolerance for a, b in pairs]))


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_drop_is_tested_one_sided(losses: int, gains: int) -> None:
    """Heads or tails: at least as many losses as there are, of as many throws as there are discordant samples."""
    expected = sum(math.comb(losses + gains, k) for k in range(losses, losses + gains + 1)) / 2 ** (losses + gains)
    assert statistics.mcnemar_drop(losses, gains) == pytest.approx(expected, rel=1e-9)
    assert statistics.mcnemar(losses, gains) == pytest.approx(
        min(1.0, 2 * min(statistics.mcnemar_drop(losses, gains), statistics.mcnemar_drop(gains, losses)))
    )


@pytest.mark.parametrize("discordant", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_false_alarms_of_mcnemar_stay_below_the_level(discordant: float, alpha: float) -> None:
    runs = 20_000
    rate = _caught(_pairs(np.random.default_rng(1), 1000, discordant, 0.0, runs), alpha)
    assert rate <= alpha + 3 * math.sqrt(alpha / runs)


POWER = {0.05: 0.997, 0.1: 0.901, 0.2: 0.660}  # as README says, of a true drop of 3 points


@pytest.mark.parametrize("discordant", POWER)
def test_a_true_drop_of_three_points_is_caught_as_often_as_theory_says(discordant: float) -> None:
    """n = 1,000 images; the power falls as more samples change sides by chance."""
    runs = 20_000
    theory = statistics.mcnemar_power(1000, discordant, 0.03)
    assert theory == pytest.approx(POWER[discordant], abs=6e-4)
    rate = _caught(_pairs(np.random.default_rng(2), 1000, discordant, 0.03, runs), 0.05)
    assert abs(rate - theory) < 4 * math.sqrt(theory * (1 - theory) / runs)
    approximate = stats.norm.cdf(
        (0.03 * math.sqrt(1000) - 1.645 * math.sqrt(discordant)) / math.sqrt(discordant - 0.03**2)
    )
    assert theory == pytest.approx(approximate, abs=0.05)  # Connor 1987, Biometrics 43:207


@pytest.mark.parametrize(("drop", "power"), [(0.005, 0.106), (0.01, 0.227), (0.015, 0.403), (0.03, 0.901)])
def test_what_the_tolerance_means(drop: float, power: float) -> None:
    """A tolerance of 1 point. "Significant" is against no drop: the tolerance is not tested, only exceeded.

    n = 1,000 and a tenth discordant, where a significant drop is larger than 1 point anyway: a true drop of half the
    tolerance alarms in 11 of 100 cases, one of just the tolerance in 23. With 10,000 images it is the tolerance that
    decides: half of the drops of just the tolerance exceed it.
    """
    runs = 20_000
    theory = statistics.mcnemar_power(1000, 0.1, drop, tolerance=0.01)
    assert theory == pytest.approx(power, abs=6e-4)
    rate = _caught(_pairs(np.random.default_rng(8), 1000, 0.1, drop, runs), 0.05, tolerance=10)
    assert abs(rate - theory) < 4 * math.sqrt(theory * (1 - theory) / runs)


def test_with_many_images_the_tolerance_decides() -> None:
    assert statistics.mcnemar_power(10_000, 0.1, 0.01, tolerance=0.01) == pytest.approx(0.494, abs=6e-4)
    assert statistics.mcnemar_power(10_000, 0.1, 0.005, tolerance=0.01) == pytest.approx(0.055, abs=6e-4)


def test_power_without_a_drop_is_the_false_alarm_rate() -> None:
    assert 0.03 < statistics.mcnemar_power(1000, 0.1, 0.0) <= 0.05
    assert statistics.mcnemar_power(1000, 0.1, 0.03, tolerance=0.03) < 0.55  # half of the drops are smaller


@given(st.integers(1, 300), st.data())
def test_the_smallest_drop_of_accuracies_is_the_first_that_is_significant(n: int, data: st.DataObject) -> None:
    standing = data.draw(st.integers(0, n))
    gains = data.draw(st.integers(0, n - standing))
    alpha = data.draw(st.sampled_from([0.05, 0.01, 0.05 / 6]))
    before = np.arange(n) < standing
    least = statistics.paired_accuracies(before, before | (np.arange(n) >= n - gains), alpha=alpha).least
    losses = [lost for lost in range(standing + 1) if statistics.mcnemar_drop(lost, gains) < alpha]
    assert least == (pytest.approx((losses[0] - gains) / n) if losses else None)


def test_the_smallest_drop_of_unpaired_accuracies() -> None:
    for before, n in ((90, 100), (3, 100), (500, 700)):
        found = statistics.unpaired_accuracies((before, 100 if before < 100 else 1000), (n // 2, n)).least
        whole = 100 if before < 100 else 1000
        significant = [
            k
            for k in range(n + 1)
            if stats.fisher_exact([[before, whole - before], [k, n - k]], alternative="greater").pvalue < 0.05
        ]
        assert found == (pytest.approx(before / whole - significant[-1] / n) if significant else None)


def test_the_smallest_drop_of_means() -> None:
    """Without gains five samples have to be lost whole, the smallest first; with gains about what McNemar's needs."""
    before = np.array([0.25] * 10 + [1.0] * 80 + [0.0] * 10)
    assert statistics.paired_means(before, before).least == pytest.approx(5 * 0.25 / 100)
    assert statistics.paired_means(before[:4], before[:4]).least is None
    before, gains = np.arange(1000) < 600, 40
    after = before | (np.arange(1000) >= 1000 - gains)
    exact = statistics.paired_accuracies(before, after).least
    about = statistics.paired_means(before.astype(float), after.astype(float)).least
    assert exact is not None and about == pytest.approx(exact, abs=0.002)


@pytest.mark.parametrize("test", [statistics.paired_means, statistics.paired_medians])
def test_permutations_agree_with_enumeration(test: object) -> None:
    """Nine pairs: all 512 swaps, counted."""
    rng = np.random.default_rng(3)
    a = rng.random(9)
    b = a + rng.normal(0.15, 0.2, 9)
    centre = np.mean if test is statistics.paired_means else np.median
    gaps = []
    for swaps in itertools.product([False, True], repeat=9):
        x, y = np.where(swaps, a, b), np.where(swaps, b, a)
        gaps.append(centre(x) - centre(y))
    observed = centre(b) - centre(a)
    greater = np.mean(np.asarray(gaps) >= observed - 1e-12)
    less = np.mean(np.asarray(gaps) <= observed + 1e-12)
    estimate = test(a, b)  # type: ignore[operator]
    assert estimate.difference == pytest.approx(observed)
    assert estimate.p == pytest.approx(min(1.0, 2 * min(greater, less)))
    assert estimate.p_drop == pytest.approx(less)
    assert estimate.low <= observed <= estimate.high


@pytest.mark.parametrize("test", [statistics.paired_means, statistics.paired_medians, statistics.unpaired_samples])
def test_permutation_tests_repeat_exactly_and_see_a_large_change(test: object) -> None:
    rng = np.random.default_rng(4)
    a = rng.random(200)
    b = a + 0.2
    assert test(a, b) == test(a, b)  # type: ignore[operator]
    assert test(a, b).p < 0.001  # type: ignore[operator]
    assert test(b, a).p_drop < 0.001 < 0.999 < test(a, b).p_drop  # type: ignore[operator]
    same = test(a, a)  # type: ignore[operator]
    assert same.difference == 0 and same.low <= 0 <= same.high and same.p > 0.9 and same.p_drop > 0.45


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """199 permutations, which are enough for a level of 5 %, so that tests can be repeated many times."""
    resampling = statistics._resampling
    monkeypatch.setattr(statistics, "_resampling", lambda *sizes: {**resampling(*sizes), "n_resamples": 199})


@pytest.mark.parametrize("test", [statistics.paired_means, statistics.paired_medians, statistics.unpaired_samples])
@pytest.mark.usefixtures("few_resamples")
def test_false_alarms_of_the_permutation_tests_stay_below_the_level(test: object) -> None:
    rng = np.random.default_rng(5)
    runs, alarms = 300, 0
    for _ in range(runs):
        base = rng.random(100)
        a, b = base + rng.normal(0, 0.1, 100), base + rng.normal(0, 0.1, 100)
        alarms += test(a, b).p_drop < 0.05  # type: ignore[operator]
    assert alarms / runs <= 0.05 + 3 * math.sqrt(0.05 / runs)


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (1, 4)])
@pytest.mark.usefixtures("few_resamples")
def test_false_alarms_of_several_seeds_stay_below_the_level(counts: tuple[int, int]) -> None:
    """Each model's own accuracy varies, and each image's strength; two seeds agree by chance every now and then."""
    rng = np.random.default_rng(9)
    runs, alarms = 400, 0
    for _ in range(runs):
        strength = rng.normal(0, 1, 100)
        old, new = (
            np.array([strength + rng.normal(0, 0.3, 100) + rng.normal(0, 0.1) > 0 for _ in range(count)])
            for count in counts
        )
        over_models = statistics.seeds(old.mean(axis=1).tolist(), new.mean(axis=1).tolist())
        over_images = statistics.paired_means(old.mean(axis=0), new.mean(axis=0))
        alarms += statistics.worse(over_models, over_images).p_drop < 0.05
    assert alarms / runs <= 0.05 + 3 * math.sqrt(0.05 / runs)


def test_of_two_tests_the_worse_counts() -> None:
    one = statistics.Estimate(-0.1, -0.2, -0.05, 0.01, 0.005, 0.03)
    other = statistics.Estimate(-0.1, -0.15, 0.01, 0.2, 0.1, 0.08)
    assert statistics.worse(one, other) == (-0.1, -0.2, 0.01, 0.2, 0.1, 0.08)
    assert statistics.worse(one, other._replace(least=None)).least is None


def test_medians_with_samples_that_never_fall() -> None:
    a = np.append(np.linspace(0.1, 0.3, 120), np.full(80, np.inf))
    b = a - 0.05
    estimate = statistics.paired_medians(a, b)
    assert estimate.difference == pytest.approx(-0.05)
    assert -0.3 < estimate.low < -0.05 < estimate.high < 0.2
    assert estimate.p < 0.001


@pytest.mark.parametrize(
    "test", [statistics.paired_medians, functools.partial(statistics.unpaired_samples, centre=np.median)]
)
def test_the_interval_of_medians_that_may_be_infinite_has_no_end(test: Callable[..., statistics.Estimate]) -> None:
    a = np.append(np.linspace(0.1, 0.3, 104), np.full(96, np.inf))
    loss, gain = test(a, np.linspace(0.1, 0.2, 200)), test(np.linspace(0.1, 0.2, 200), a)
    assert loss.low == -math.inf and -0.2 < loss.difference < loss.high < 0
    assert gain.high == math.inf and 0 < gain.low < gain.difference < 0.2
    assert loss.p < 0.01 and gain.p < 0.01 and all(one.least is None or one.least < 1 for one in (loss, gain))


def test_seeds_are_welchs_t() -> None:
    before, after = [0.50, 0.52, 0.51], [0.45, 0.49, 0.47, 0.46]
    estimate = statistics.seeds(before, after)
    expected = stats.ttest_ind(after, before, equal_var=False)
    assert estimate.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))
    one_sided = stats.ttest_ind(after, before, equal_var=False, alternative="less")
    assert estimate.p_drop == pytest.approx(one_sided.pvalue)
    worse = [value - estimate.least - estimate.difference for value in after]  # type: ignore[operator]
    assert statistics.seeds(before, worse).p_drop == pytest.approx(0.05)


def test_one_model_against_several_seeds() -> None:
    """Student's t for one new observation: (x - mean) / (s sqrt(1 + 1/n)), n - 1 degrees of freedom."""
    several = [0.50, 0.52, 0.51, 0.49]
    estimate = statistics.seeds(several, [0.45])
    t = (0.45 - np.mean(several)) / (np.std(several, ddof=1) * math.sqrt(1.25))
    assert estimate.p == pytest.approx(2 * stats.t.sf(abs(t), 3))
    assert estimate.p_drop == pytest.approx(stats.t.sf(abs(t), 3))
    assert estimate.low < estimate.difference < estimate.high
    assert statistics.seeds([0.5, 0.5], [0.4, 0.4]).p == 0
    assert statistics.seeds([0.5, 0.5], [0.5, 0.5]).p == 1


def test_holm_published_example() -> None:
    """p = 0.01, 0.04, 0.03, 0.005 at four tests: R's p.adjust gives 0.03, 0.06, 0.06, 0.02."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_the_raw_and_bonferroni(p: list[float]) -> None:
    for raw, adjusted in zip(p, statistics.holm(p), strict=True):
        assert raw <= adjusted <= min(1.0, len(p) * raw) or adjusted == max(statistics.holm(p))


def test_bonferronis_intervals_hold_together() -> None:
    """Of 8 models against one baseline, all true differences lie in their intervals nearly 95 % of the time."""
    rng, models, n, runs = np.random.default_rng(3), 8, 300, 300
    lost, gained, right = 0.12, 0.08, 0.6
    truth = gained * (1 - right) - lost * right
    interval = functools.cache(statistics.tango)
    hold = dict.fromkeys((0.95, 1 - 0.05 / models), 0)
    for _ in range(runs):
        base = rng.random(n) < right
        draws = rng.random((models, n))
        losses, gains = (base & (draws < lost)).sum(1), (~base & (draws < gained)).sum(1)
        for level in hold:
            ends = [interval(int(g), int(x), n, level) for g, x in zip(gains, losses, strict=True)]
            hold[level] += all(low <= truth <= high for low, high in ends)
    alone, together = (hold[level] / runs for level in hold)
    assert alone < 0.85 and 0.92 < together <= 1  # 0.95 less thrice the error of 300 draws is 0.91
