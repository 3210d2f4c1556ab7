"""Margins of linear classifiers, and the largest possible ones: Faghri et al. 2021, arXiv:2102.08868, section 2.

z (n, d) holds y_i x_i. A classifier w classifies every point correctly under any perturbation smaller than
min_i z_i.w / ||w||_dual. The largest such margin is 1 / min {||w||_dual : z_i.w >= 1 for all i}.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, nnls

Array = NDArray[np.float64]

# A linear program has no complex modulus: a polygon with this many sides replaces the circle. The modulus comes out
# too small by at most 1 - cos(pi / 64) = 0.12 %.
POLYGON_SIDES = 64

DUALS: dict[str, Callable[[Array], float]] = {
    "l2": lambda w: float(np.sqrt(w @ w)),
    "linf": lambda w: float(np.abs(w).sum()),
    "l1": lambda w: float(np.abs(w).max()),
    "fourier-linf": lambda w: float(np.abs(np.fft.fft(w, norm="ortho")).sum()),
}
"""For each norm of attacks, the dual norm of w (d,). The transform is unitary, as in `threat.FourierLinf`."""


def margin(z: Array, w: Array, norm: str) -> float:
    """The size in `norm` below which no perturbation changes a prediction; negative if a point is misclassified."""
    return float((z @ w).min()) / DUALS[norm](w)


def largest_margin(z: Array, norm: str) -> float:
    """The largest margin of any w: that of the minimum-norm solution.

    For fourier-linf it is an upper bound, too large by at most 0.12 %.
    """
    if norm == "fourier-linf":
        return 1 / _least_fourier(z)[1]
    return margin(z, minimum_norm(z, norm), norm)


def minimum_norm(z: Array, norm: str) -> Array:
    """w (d,) of least dual norm with z_i.w >= 1, up to scale: by a linear program, or least squares for l2."""
    match norm:
        case "l2":
            return _least_l2(z)
        case "linf":
            return _least_l1(z)
        case "l1":
            return _least_linf(z)
        case _:
            return _least_fourier(z)[0]


def _least_l1(z: Array) -> Array:
    """Least l1 norm: min sum(p + q), z (p - q) >= 1, p, q >= 0."""
    n, d = z.shape
    found = linprog(np.ones(2 * d), A_ub=np.hstack([-z, z]), b_ub=-np.ones(n), method="highs")
    return np.asarray(found.x[:d] - found.x[d:])


def _least_linf(z: Array) -> Array:
    """Least Linf norm: min t, z w >= 1, -t <= w <= t."""
    n, d = z.shape
    one, eye = np.ones((d, 1)), np.eye(d)
    above = np.vstack([np.hstack([-z, np.zeros((n, 1))]), np.hstack([eye, -one]), np.hstack([-eye, -one])])
    limits = np.concatenate([-np.ones(n), np.zeros(2 * d)])
    free = [(None, None)] * d + [(0, None)]
    found = linprog(np.append(np.zeros(d), 1.0), A_ub=above, b_ub=limits, bounds=free, method="highs")
    return np.asarray(found.x[:d])


def _least_l2(z: Array) -> Array:
    """Least l2 norm: the dual quadratic program as nonnegative least squares, solved by active sets.

    min_{a >= 0} ||z'a||^2 + (1 - sum a)^2 has, by its optimality conditions, z_i.(z'a) >= 1 - sum a with equality
    wherever a_i > 0: z'a is the minimum-norm solution, scaled.
    """
    n, d = z.shape
    a, _ = nnls(np.vstack([z.T, np.ones(n)]), np.append(np.zeros(d), 1.0))
    return np.asarray(a @ z)


def _least_fourier(z: Array) -> tuple[Array, float]:
    """w and the least sum_k max_theta Re(e^(-i theta) (F w)_k) over the angles theta, which is at most ||F w||_1."""
    n, d = z.shape
    k = np.arange(d // 2 + 1)  # the other frequencies are conjugates, since w is real
    fourier = np.exp(-2j * np.pi * np.outer(k, np.arange(d)) / d) / np.sqrt(d)
    turns = np.exp(-2j * np.pi * np.arange(POLYGON_SIDES) / POLYGON_SIDES)
    sides = (turns[:, None, None] * fourier).real.reshape(-1, d)
    moduli = np.tile(np.eye(len(k)), (POLYGON_SIDES, 1))
    above = np.vstack([np.hstack([-z, np.zeros((n, len(k)))]), np.hstack([sides, -moduli])])
    limits = np.concatenate([-np.ones(n), np.zeros(len(sides))])
    cost = np.concatenate([np.zeros(d), np.where((k == 0) | (2 * k == d), 1.0, 2.0)])
    free = [(None, None)] * d + [(0, None)] * len(k)
    found = linprog(cost, A_ub=above, b_ub=limits, bounds=free, method="highs")
    return np.asarray(found.x[:d]), float(found.fun)
