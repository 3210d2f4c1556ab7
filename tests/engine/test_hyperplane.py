"""The shortest step onto a hyperplane within the box, against linear programs (Linf, L1) and SLSQP (L2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

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


def smallest_norm(x: np.ndarray, w: np.ndarray, rise: float, norm: str) -> float:
    bounds = np.stack([-x, 1 - x], 1).astype(float)
    eye = np.eye(SIZE)
    if norm == "linf":  # variables d, t: minimise t with |d| <= t
        limits = np.block([[eye, -np.ones((SIZE, 1))], [-eye, -np.ones((SIZE, 1))]])
        cost = np.r_[np.zeros(SIZE), 1]
        found = linprog(cost, limits, np.zeros(2 * SIZE), [np.r_[w, 0]], [rise], [*bounds, (0, None)])
        return float(found.fun)
    if norm == "l1":
        cost = np.r_[np.zeros(SIZE), np.ones(SIZE)]
        limits = np.block([[eye, -eye], [-eye, -eye]])
        equal = [np.r_[w, np.zeros(SIZE)]]
        found = linprog(cost, limits, np.zeros(2 * SIZE), equal, [rise], [*bounds, *[(0, None)] * SIZE])
        return float(found.fun)
    found = minimize(
        lambda d: (d**2).sum(),
        np.zeros(SIZE),
        bounds=bounds,
        constraints={"type": "eq", "fun": lambda d: w @ d - rise},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return float(np.sqrt(found.fun))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("seed", range(12))
def test_is_the_shortest_step_onto_the_hyperplane(norm, seed):
    x, w, rise = problem(seed)
    d = ours(x, w, rise, norm)
    assert w @ d == pytest.approx(rise, abs=1e-5)
    assert (x + d >= -1e-7).all() and (x + d <= 1 + 1e-7).all()
    size = np.linalg.norm(d, {"linf": np.inf, "l2": 2, "l1": 1}[norm])
    assert size == pytest.approx(smallest_norm(x, w, rise, norm), rel=1e-4)


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
