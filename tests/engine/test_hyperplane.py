"""The step onto a hyperplane inside the box, against the closed forms of its length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from advbench.engine.hyperplane import to_hyperplane

SIZE = 6


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    draw = np.random.default_rng(seed)
    x = np.clip(draw.normal(0.5, 0.5, SIZE), 0, 1).astype(np.float32)
    w = draw.normal(size=SIZE).astype(np.float32)
    sign = draw.choice([-1, 1])
    most = (np.abs(w) * np.where(sign * w > 0, 1 - x, x)).sum()
    return x, w, float(sign * draw.uniform(0.1, 0.95) * most)


def ours(x: np.ndarray, w: np.ndarray, rise: float, norm: str) -> np.ndarray:
    d = to_hyperplane(
        torch.from_numpy(x).view(1, 1, 2, 3), torch.from_numpy(w).view(1, 1, 2, 3), torch.tensor([rise]), norm
    )
    return d.double().numpy().ravel()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("seed", range(12))
def test_is_the_shortest_step_onto_the_hyperplane(exact_least: Callable[..., float], norm, seed):
    x, w, rise = problem(seed)
    d = ours(x, w, rise, norm)
    assert w @ d == pytest.approx(rise, abs=1e-5)
    assert (x + d >= -1e-7).all() and (x + d <= 1 + 1e-7).all()
    size = np.linalg.norm(d, {"linf": np.inf, "l2": 2, "l1": 1}[norm])
    towards = np.sign(rise) * w.astype(np.float64)
    room = np.where(towards > 0, 1 - x.astype(np.float64), x)
    # Sums of six float32 products, whose errors stay under 1e-6 of them, over slopes that are not small beside them.
    assert size == pytest.approx(exact_least(norm, towards, room, abs(rise)), rel=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_goes_as_far_as_the_box_lets_it(norm):
    x, w, _ = problem(3)
    d = ours(x, w, 1000.0, norm)
    assert np.allclose(x + d, np.where(w > 0, 1, 0), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_elements_without_gradient_stay(norm):
    x, w, rise = problem(4)
    w[2] = 0
    assert ours(x, w, rise / 4, norm)[2] == 0
    assert np.array_equal(ours(x, 0 * w, 1.0, norm), np.zeros(SIZE))
