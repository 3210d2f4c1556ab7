"""Intervals and tests against published examples, scipy, exact enumeration and simulation."""

from __future__ import annotations

import itertools
import math

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


def _caught(pairs: np.ndarray, alpha: float) -> float:
    p = {pair: statistics.mcnemar(*pair) for pair in {(int(a), int(b)) for a, b in pairs}}
    return float(np.mean([p[int(a), int(b)] < alpha and a > b for a, b in pairs]))


@pytest.mark.parametrize("discordant", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_false_alarms_of_mcnemar_stay_below_the_level(discordant: float, alpha: float) -> None:
    runs = 20_000
    rate = _caught(_pairs(np.random.default_rng(1), 1000, discordant, 0.0, runs), alpha)
    assert rate <= alpha / 2 + 3 * math.sqrt(alpha / 2 / runs)  # only drops alarm: half of the two-sided level


@pytest.mark.parametrize("discordant", [0.05, 0.1, 0.2])
def test_a_true_drop_of_three_points_is_caught_as_often_as_theory_says(discordant: float) -> None:
    """n = 1,000 images; the power falls as more samples change sides by chance: 0.99, 0.83, 0.54."""
    runs = 20_000
    theory = statistics.mcnemar_power(1000, discordant, 0.03)
    rate = _caught(_pairs(np.random.default_rng(2), 1000, discordant, 0.03, runs), 0.05)
    assert abs(rate - theory) < 4 * math.sqrt(theory * (1 - theory) / runs)
    approximate = stats.norm.cdf(
        (0.03 * math.sqrt(1000) - 1.96 * math.sqrt(discordant)) / math.sqrt(discordant - 0.03**2)
    )
    assert theory == pytest.approx(approximate, abs=0.05)  # Connor 1987, Biometrics 43:207


def test_power_without_a_drop_is_the_false_alarm_rate() -> None:
    assert 0.015 < statistics.mcnemar_power(1000, 0.1, 0.0) <= 0.025
    assert statistics.mcnemar_power(1000, 0.1, 0.03, tolerance=0.03) < 0.55  # half of the drops are smaller


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
    assert estimate.low <= observed <= estimate.high


@pytest.mark.parametrize("test", [statistics.paired_means, statistics.paired_medians, statistics.unpaired_samples])
def test_permutation_tests_repeat_exactly_and_see_a_large_change(test: object) -> None:
    rng = np.random.default_rng(4)
    a = rng.random(200)
    b = a + 0.2
    assert test(a, b) == test(a, b)  # type: ignore[operator]
    assert test(a, b).p < 0.001  # type: ignore[operator]
    same = test(a, a)  # type: ignore[operator]
    assert same.difference == 0 and same.low <= 0 <= same.high and same.p > 0.9


@pytest.mark.parametrize("test", [statistics.paired_means, statistics.paired_medians])
def test_false_alarms_of_the_permutation_tests_stay_below_the_level(
    test: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    resampling = statistics._resampling
    monkeypatch.setattr(statistics, "_resampling", lambda size: {**resampling(size), "n_resamples": 199})
    rng = np.random.default_rng(5)
    runs, alarms = 300, 0
    for _ in range(runs):
        base = rng.random(100)
        a, b = base + rng.normal(0, 0.1, 100), base + rng.normal(0, 0.1, 100)
        estimate = test(a, b)  # type: ignore[operator]
        alarms += estimate.p < 0.05 and estimate.difference < 0
    assert alarms / runs <= 0.025 + 3 * math.sqrt(0.025 / runs)


def test_medians_with_samples_that_never_fall() -> None:
    a = np.append(np.linspace(0.1, 0.3, 120), np.full(80, np.inf))
    b = a - 0.05
    estimate = statistics.paired_medians(a, b)
    assert estimate.difference == pytest.approx(-0.05)
    assert -0.3 < estimate.low < -0.05 < estimate.high < 0.2
    assert estimate.p < 0.001


def test_seeds_are_welchs_t() -> None:
    before, after = [0.50, 0.52, 0.51], [0.45, 0.49, 0.47, 0.46]
    estimate = statistics.seeds(before, after)
    expected = stats.ttest_ind(after, before, equal_var=False)
    assert estimate.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))


def test_one_model_against_several_seeds() -> None:
    """Student's t for one new observation: (x - mean) / (s sqrt(1 + 1/n)), n - 1 degrees of freedom."""
    several = [0.50, 0.52, 0.51, 0.49]
    estimate = statistics.seeds(several, [0.45])
    t = (0.45 - np.mean(several)) / (np.std(several, ddof=1) * math.sqrt(1.25))
    assert estimate.p == pytest.approx(2 * stats.t.sf(abs(t), 3))
    assert estimate.low < estimate.difference < estimate.high
    assert statistics.seeds([0.5, 0.5], [0.4, 0.4]).p == 0
    assert statistics.seeds([0.5, 0.5], [0.5, 0.5]).p == 1


def test_tests_against_a_number() -> None:
    assert statistics.share_against(40, 100, 0.5) == pytest.approx(stats.binomtest(40, 100, 0.5).pvalue)
    values = np.array([0.1, 0.2, 0.4, 0.3])
    assert statistics.mean_against(values, 0.5) == pytest.approx(stats.ttest_1samp(values, 0.5).pvalue)
    assert statistics.mean_against(np.array([0.3]), 0.4) == 1
    assert statistics.mean_against(np.array([0.3, 0.3]), 0.4) == 0
    assert statistics.median_against(np.array([0.1] * 9 + [0.9]), 0.5) == pytest.approx(2 * 11 / 2**10)


def test_holm_published_example() -> None:
    """p = 0.01, 0.04, 0.03, 0.005 at four tests: R's p.adjust gives 0.03, 0.06, 0.06, 0.02."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_the_raw_and_bonferroni(p: list[float]) -> None:
    for raw, adjusted in zip(p, statistics.holm(p), strict=True):
        assert raw <= adjusted <= min(1.0, len(p) * raw) or adjusted == max(statistics.holm(p))
