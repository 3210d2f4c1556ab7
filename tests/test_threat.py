"""Regions: projections, steepest directions, samples and membership, against definitions and scipy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from advbench import rng, threat
from advbench.errors import UserError
from advbench.roots import falling
from advbench.threat import REGIONS, FourierLinf, around, banded, check_band, leak

NORMS = sorted(REGIONS)
DIRECTED = [norm for norm in NORMS if norm != "l0"]  # those with directions and a dual norm
# Sizes at which the ball is smaller than the box, about as large, and larger.
SIZES = {
    "linf": (0.02, 0.3, 0.9),
    "l2": (0.1, 1.0, 9.0),
    "l1": (0.2, 6.0, 60.0),
    "l0": (1.0, 7.0, 60.0),
    "fourier-linf": (0.02, 0.5, 9.0),
}
seeds = st.integers(0, 10**6)


def images(seed: int, spread: float = 0.8, shape: tuple[int, ...] = (3, 2, 5, 4)) -> torch.Tensor:
    """Random images with some elements on the border of [0, 1]."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (0.5 + spread * noise).clamp(0, 1)


def cases(seed: int):
    for norm in NORMS:
        for size in SIZES[norm]:
            region = around(norm, images(seed), torch.full((3,), size, dtype=torch.float64))
            z = images(seed + 1) + torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(seed + 2))
            yield region, z


@given(seeds)
@settings(max_examples=settings.default.max_examples // 3)
def test_projection_lands_inside_and_leaves_what_is_inside(seed):
    for region, z in cases(seed):
        inside = region.project(z)
        assert region.contains(inside).all(), region.norm
        assert torch.allclose(region.project(inside), inside, atol=2e-6), region.norm
        assert torch.allclose(region.project(region.x), region.x, atol=1e-6), region.norm


@given(seeds)
@settings(max_examples=settings.default.max_examples // 3)
def test_steepest_attains_the_dual_norm(seed):
    g = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(seed))
    for norm in DIRECTED:
        region = around(norm, images(seed), torch.ones(3, dtype=torch.float64))
        d = region.steepest(g)
        assert torch.allclose(region.size(d), torch.ones(3), atol=1e-4), norm
        assert torch.allclose((g * d).flatten(1).sum(1), region.dual(g), rtol=1e-4), norm


@given(seeds)
@settings(max_examples=settings.default.max_examples // 3)
def test_no_direction_gains_more_than_the_dual_norm(seed):
    draw = torch.Generator().manual_seed(seed)
    g, d = torch.randn(3, 2, 5, 4, generator=draw), torch.randn(3, 2, 5, 4, generator=draw)
    for norm in DIRECTED:
        region = around(norm, images(seed), torch.ones(3, dtype=torch.float64))
        gained = (g * d).flatten(1).sum(1) / region.size(d)
        assert (gained <= region.dual(g) * (1 + 1e-5)).all(), norm


@pytest.mark.parametrize("norm", DIRECTED)
def test_zero_gradients_have_no_direction(norm):
    region = around(norm, images(0), torch.ones(3, dtype=torch.float64))
    assert torch.equal(region.steepest(torch.zeros_like(region.x)), torch.zeros_like(region.x))


def test_l2_direction_survives_tiny_gradients():
    region = around("l2", images(0), torch.ones(3, dtype=torch.float64))
    d = region.steepest(1e-30 * torch.ones_like(region.x))
    assert torch.allclose(region.size(d), torch.ones(3), atol=1e-5)


@given(seeds)
@settings(max_examples=settings.default.max_examples // 5)
def test_samples_lie_inside_and_differ_by_key_alone(seed):
    for region, _ in cases(seed):
        key = rng.keys(seed, "sample", torch.arange(3))
        drawn = region.sample(key)
        assert region.contains(drawn).all(), region.norm
        alone = around(region.norm, region.x[1:2], region.eps[1:2]).sample(key[1:2])
        assert torch.allclose(drawn[1:2], alone, atol=1e-6), region.norm


@pytest.mark.parametrize("norm", DIRECTED)
def test_samples_fill_the_ball_evenly(norm):
    """In balls that [0, 1] does not cut, these are uniform: elements in Linf, r^n in L2, r in L1 and Fourier."""
    x, eps = torch.full((800, 1, 2, 2), 0.5), torch.full((800,), 0.2, dtype=torch.float64)
    region = around(norm, x, eps)
    d = (region.sample(rng.keys(0, "sample", torch.arange(800))) - x).double() / 0.2
    size = region.size(d).numpy()
    evenly = {"linf": (d.flatten().numpy() + 1) / 2, "l2": size**4}.get(norm, size)
    assert stats.kstest(evenly, "uniform").pvalue > 0.001
    for element in d.flatten(1).T.numpy():
        moved = element[element != 0]
        assert stats.binomtest(int((moved > 0).sum()), len(moved)).pvalue > 0.001


def test_the_ball_of_l0_is_a_count_of_elements():
    x, eps = images(5), torch.tensor([0.0, 3.0, 40.0], dtype=torch.float64)
    region = around("l0", x, eps)
    drawn = region.sample(rng.keys(0, "sample", torch.arange(3)))
    assert region.size(drawn - x).tolist() == [0, 3, 40]
    z = images(6)
    kept = region.project(z)
    for row, count in enumerate((0, 3, 40)):
        change = (z - x)[row].abs().flatten()
        largest = change.sort(descending=True).values[:count].sum()
        assert torch.isclose((kept - x)[row].abs().sum(), largest, atol=1e-5)
        assert ((kept[row] == z[row]) | (kept[row] == x[row])).all()
    assert region.contains(kept).tolist() == [True] * 3
    more = kept.clone()
    more[1].view(-1)[(kept == x)[1].flatten().nonzero()[0]] = 0.123
    assert region.contains(more).tolist() == [True, False, True]
    large, count = torch.zeros(1, 3, 200, 200), torch.tensor([100_000.0], dtype=torch.float64)
    more = large.clone()
    more.view(-1)[:100_001] = 0.5
    assert around("l0", large, count).contains(more).tolist() == [False]


def least_distance(norm: str, at: np.ndarray, u: np.ndarray, size: float) -> float:
    """What no step d of that size with at + d in [0, 1] falls short of in |d - u|^2, by the dual problem in float64.

    The dual is a bound from below for every multiplier, however well the root is found; the best one attains it.
    """

    def step(lam: float) -> np.ndarray:  # the least of |d - u|^2 + lam (sum of d^2, or of |d|) in the box
        shorter = u / (1 + lam) if norm == "l2" else np.sign(u) * np.maximum(np.abs(u) - lam / 2, 0)
        return np.clip(shorter, -at, 1 - at)

    def excess(lam: float) -> float:
        d = step(lam)
        return float((d**2).sum() - size**2 if norm == "l2" else np.abs(d).sum() - size)

    most = np.linalg.norm(u) / size if norm == "l2" else 2 * np.abs(u).max()  # with which the step is short enough
    lam = brentq(excess, 0, most) if excess(0) > 0 else 0.0
    return float(((step(lam) - u) ** 2).sum() + lam * excess(lam))


def is_nearest(norm: str, size: float, seed: int) -> None:
    x = images(seed, shape=(1, 1, 2, 4))
    z = x + 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 50))
    region = around(norm, x, torch.tensor([size], dtype=torch.float64))
    ours = region.project(z)
    assert region.contains(ours).all()
    at, goal = x.double().numpy().ravel(), z.double().numpy().ravel()
    distance = ((ours.double().numpy().ravel() - goal) ** 2).sum()
    # `contains` admits steps that are too long by 1e-5 of the size; float32 is as far from the root.
    assert distance == pytest.approx(least_distance(norm, at, goal - at, size), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("bits", [1, 2])  # a round, on a CPU and on CUDA
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [0.3, 1.0, 2.5])
def test_l1_projection_is_the_nearest_point(seed, size, bits, monkeypatch):
    monkeypatch.setattr(threat, "falling", partial(falling, bits=bits))
    is_nearest("l1", size, seed)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [0.2, 0.5, 1.0])
def test_l2_projection_is_the_nearest_point(seed, size):
    is_nearest("l2", size, seed)


@given(seeds, st.floats(0.1, 30), st.floats(0.05, 4))
@settings(max_examples=settings.default.max_examples * 3 // 5)
def test_l2_projection_has_climbed_high_enough(seed, far, size):
    """Images with a black border, as MNIST's, and points far outside: the s of the docstring, by root finding."""
    x = images(seed, spread=2.0, shape=(2, 1, 12, 12))
    x[:, :, :4] = 0
    u = far * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1)) / 12
    ours = (around("l2", x, torch.full((2,), size, dtype=torch.float64)).project(x + u) - x).double().flatten(1)
    for row in range(2):
        at, step = x[row].double().numpy().ravel(), (x + u - x)[row].double().numpy().ravel()

        def clipped(s, at=at, step=step):
            return np.clip(s * step, -at, 1 - at)

        s = 1.0
        if np.linalg.norm(clipped(1)) > size:
            s = brentq(lambda s: np.linalg.norm(clipped(s)) - size, 0, 1)
        assert np.linalg.norm(clipped(s) - ours[row].numpy()) <= 1e-3 * size


@pytest.mark.parametrize("seed", range(3))
def test_fourier_projection_is_nearly_the_nearest_point(seed):
    """Compared with Dykstra's algorithm: projections onto ball and box in turn, each first undoing its last step."""
    draw = torch.Generator().manual_seed(seed)
    x = (0.5 + 0.8 * torch.randn(8, 1, 8, 8, generator=draw)).clamp(0, 1)
    goal = x + torch.randn(8, 1, 8, 8, generator=draw)
    region = around("fourier-linf", x, torch.full((8,), 0.5, dtype=torch.float64))
    z, to_ball, to_box = goal, torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(300):
        f = torch.fft.fft2(z + to_ball - x, norm="ortho")
        in_ball = x + torch.fft.ifft2(f * (0.5 / f.abs().clamp_min(1e-12)).clamp_max(1), norm="ortho").real
        to_ball = z + to_ball - in_ball
        z = (in_ball + to_box).clamp(0, 1)
        to_box = in_ball + to_box - z
    assert (spectrum(z - x) < 0.5 * 1.01).all()
    ours, best = ((point - goal).flatten(1).norm(dim=1) for point in (region.project(goal), z))
    assert (ours > 0.999 * best).all()
    assert (ours < 1.08 * best).all()


def test_fourier_ascent_on_dark_images_gains_nearly_what_many_rounds_do(monkeypatch):
    """Nor does what a row gains depend on its company."""
    draw = torch.Generator().manual_seed(0)
    dark = torch.rand(6, 1, 20, 16, generator=draw) < torch.tensor([0.0, 0.4, 0.8, 0.8, 0.9, 0.95]).view(-1, 1, 1, 1)
    x = torch.where(dark, 0.0, torch.rand(6, 1, 20, 16, generator=draw))
    w = torch.randn(6, 1, 20, 16, generator=draw)

    def ascent(rows):
        region = around("fourier-linf", x[rows], torch.full((len(x[rows]),), 0.1, dtype=torch.float64))
        z = x[rows]
        for _ in range(40):
            z = region.project(z + 0.25 * region.e * region.steepest(w[rows]))
        assert region.contains(z).all()
        return z

    gain = ((ascent(slice(None)) - x) * w).flatten(1).sum(1)
    alone = torch.cat([ascent(slice(row, row + 1)) for row in range(6)])
    assert torch.allclose(((alone - x) * w).flatten(1).sum(1), gain, rtol=1e-3)
    monkeypatch.setattr(threat, "_MAX_FOURIER_ROUNDS", 200)
    assert (gain > 0.97 * ((ascent(slice(None)) - x) * w).flatten(1).sum(1)).all()


def test_linf_and_l2_projections_without_the_box_are_the_nearest_points():
    x = torch.full((1, 1, 1, 2), 0.5)
    z = torch.tensor([0.9, 0.2]).view(1, 1, 1, 2)
    eps = torch.tensor([0.1], dtype=torch.float64)
    assert torch.allclose(around("linf", x, eps).project(z), torch.tensor([0.6, 0.4]))
    assert torch.allclose(around("l2", x, eps).project(z), torch.tensor([0.58, 0.44]))  # 0.5 + 0.1 (4, -3) / 5


def test_membership_is_exact_for_linf_and_has_the_stated_tolerance_for_l2():
    x, eps = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0.25], dtype=torch.float64)
    linf, l2 = around("linf", x, eps), around("l2", x, eps)
    just_out = torch.nextafter(torch.tensor(0.75), torch.tensor(1.0)).view(1, 1, 1, 1)
    assert linf.contains(torch.full_like(x, 0.75)).all() and not linf.contains(just_out).any()
    assert l2.contains(x + 0.25 * (1 + 1e-5)).all() and not l2.contains(x + 0.25 * (1 + 2e-5) + 2e-6).any()
    for region in (around("linf", x, eps * 9), around("l2", x, eps * 9)):
        assert not region.contains(torch.full_like(x, -1e-6)).any()
        assert not region.contains(torch.full_like(x, torch.nan)).any()


def test_infinite_eps_leaves_only_the_box():
    for norm in NORMS:
        region = around(norm, images(3), torch.full((3,), torch.inf, dtype=torch.float64))
        z = images(4)
        assert region.contains(z).all()
        assert torch.allclose(region.project(z), z, atol=1e-6)


@pytest.mark.parametrize("band", [(0.0, 0.2), (0.2, 0.45)])
def test_a_band_holds_directions_to_its_frequencies(band):
    x = torch.full((2, 1, 8, 8), 0.5)
    region = banded(around("fourier-linf", x, torch.full((2,), 0.1, dtype=torch.float64)), band)
    assert isinstance(region, FourierLinf)
    line = torch.fft.fftfreq(8)
    radius = (line[:, None] ** 2 + line[None] ** 2).sqrt()
    inside = (radius >= band[0]) & (radius <= band[1])
    draw = torch.Generator().manual_seed(0)
    g = torch.randn(2, 1, 8, 8, generator=draw)
    farther = x + 0.2 * torch.randn(2, 1, 8, 8, generator=draw)
    z = region.project(x + region.e * region.steepest(g))
    assert torch.allclose(spectrum(z - x)[:, :, inside], torch.tensor(0.1), atol=1e-5)
    for d in (z - x, region.steepest(g), region.project(farther) - x):
        assert spectrum(d)[:, :, ~inside].max() < 1e-6 < 0.05 < spectrum(d)[:, :, inside].max()
    gained = (g * (z - x)).flatten(1).sum(1)
    assert torch.allclose(gained, 0.1 * region.dual(g), rtol=1e-4)
    assert (region.dual(g) < around("fourier-linf", x, region.eps).dual(g)).all()


def spectrum(d: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft2(d, norm="ortho").abs()


def test_what_leaks_from_a_band_is_the_energy_outside_of_it():
    row = torch.arange(16.0).view(16, 1).expand(16, 16)
    slow, fast = torch.cos(2 * torch.pi * row / 16), torch.cos(2 * torch.pi * row * 6 / 16)
    d = torch.stack([slow, fast, slow + fast, 2 * slow + fast, torch.zeros(16, 16)])[:, None]
    assert torch.allclose(leak(d, (0.0, 0.25)), torch.tensor([0, 1, 0.5, 0.2, 0]), atol=1e-6)
    assert torch.allclose(leak(d, (0.3, 0.5)), torch.tensor([1, 0, 0.5, 0.8, 0]), atol=1e-6)


@pytest.mark.parametrize(("band", "norm", "reason"), [((0, 0.2), "l2", "norm"), ((0.3, 0.1), "fourier-linf", "low")])
def test_invalid_bands_are_refused(band, norm, reason):
    with pytest.raises(UserError, match=reason):
        check_band(band, norm)


def test_unknown_norm_names_the_known_ones():
    with pytest.raises(UserError, match="linf"):
        around("l3", images(0), torch.ones(3))
