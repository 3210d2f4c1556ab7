"""The optimisers of Faghri et al. 2021, arXiv:2102.08868, on the exponential loss of linear classifiers.

z (n, d) holds y_i x_i, L(w) = mean exp(-z_i.w). Steps are divided by L (Gunasekar et al. 2018, 1802.08246,
theorem 5: 0.5 / (B^2 L), B the largest dual norm of a point). So only grad L / L is needed, and nothing underflows,
however long the descent is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from advbench.errors import unknown

Array = NDArray[np.float64]

STAGES = 20  # values of lambda, of FISTA
STEEPEST = ("gradient-descent", "coordinate-descent", "sign-gradient-descent")


def ascent(z: Array, w: Array) -> Array:
    """-grad L / L (d,) at w (d,): the mean of the points, weighted by their share of the loss."""
    m = z @ w
    p = np.exp(m.min() - m)
    return np.asarray((p / p.sum()) @ z)


def steepest(z: Array, name: str, steps: int) -> Array:
    """w (d,) after `steps` steps of steepest descent from 0.

    `name`: one of STEEPEST, for descent in l2, l1 (the largest coordinate) or Linf (||g||_1 sign g). Raises UserError
    for another name.
    """
    if name not in STEEPEST:
        raise unknown("optimiser", name, STEEPEST)
    bound = {
        "gradient-descent": np.sqrt((z * z).sum(1)).max(),
        "coordinate-descent": np.abs(z).max(),
        "sign-gradient-descent": np.abs(z).sum(1).max(),
    }[name]
    step, w = 0.5 / bound**2, np.zeros(z.shape[1])
    for _ in range(steps):
        g = ascent(z, w)
        if name == "gradient-descent":
            w += step * g
        elif name == "coordinate-descent":
            top = np.abs(g).argmax()
            w[top] += step * g[top]
        else:
            w += step * np.abs(g).sum() * np.sign(g)
    return w


def convolutional(z: Array, steps: int, rng: np.random.Generator, scale: float = 0.01) -> Array:
    """w = a * b (circular) after gradient descent on the filters a, b (d,) of a 2-layer linear net, from scale N(0, I).

    The filters are stored in the Fourier domain: with a unitary transform the net is a product there. The step size
    also falls with the filters' largest gain, which bounds the curvature.
    """
    d = z.shape[1]
    points = np.fft.rfft(z, norm="ortho")
    a, b = (np.fft.rfft(scale * rng.standard_normal(d), norm="ortho") for _ in range(2))
    bound = np.abs(points).max()
    for _ in range(steps):
        m = z @ np.fft.irfft(a * b, n=d, norm="ortho")
        p = np.exp(m.min() - m)
        g = (p / p.sum()) @ points
        gain = max(np.abs(a).max(), np.abs(b).max())
        step = 0.5 / (bound + (bound * gain) ** 2)
        a, b = a + step * np.conj(b) * g, b + step * np.conj(a) * g
    return np.asarray(np.fft.irfft(a * b, n=d, norm="ortho"))


def fully_connected(z: Array, steps: int, rng: np.random.Generator, width: int = 10, scale: float = 0.01) -> Array:
    """w = A'b after gradient descent on the layers A (width, d) and b (width,) of a linear net, from scale N(0, I).

    The step size also falls with the layers' sizes, which bound the curvature.
    """
    first, last = scale * rng.standard_normal((width, z.shape[1])), scale * rng.standard_normal(width)
    bound = np.sqrt((z * z).sum(1)).max()
    for _ in range(steps):
        g = ascent(z, last @ first)
        step = 0.5 / (bound + bound**2 * max((first * first).sum(), last @ last))
        first, last = first + step * np.outer(last, g), last + step * (first @ g)
    return np.asarray(last @ first)


def fista(z: Array, norm: str, steps: int, stages: int = STAGES, last: float = 200.0) -> Array:
    """w (d,) after FISTA (Beck and Teboulle 2009) on L(w) + lambda ||w||, the dual of `norm`, for lambda -> 0.

    There are `stages` values of lambda from e^-1 to e^-`last`; each starts from the last solution, scaled. The
    objective is mean exp(c - z_i.w) + ||w||, c = -log lambda, with backtracking and restarts (O'Donoghue and Candes
    2015).
    """
    w, step, before = np.zeros(z.shape[1]), 1e-3, 0.0
    for c in np.geomspace(1, last, stages):
        if before:
            w = w * (c / before)
        before = c
        y, t = w.copy(), 1.0
        for _ in range(steps // stages):
            losses = np.exp(c - z @ y) / len(z)
            if losses.sum() > 1e6:  # the momentum overshot
                y, t = w.copy(), 1.0
                losses = np.exp(c - z @ y) / len(z)
            value, g = losses.sum(), -(losses @ z)
            step *= 1.3
            while True:
                x = prox(y - step * g, step, norm)
                d = x - y
                with np.errstate(over="ignore"):
                    reached = np.exp(c - z @ x).mean()
                if reached <= value * (1 + 1e-10) + g @ d + d @ d / (2 * step):
                    break
                step /= 2
            y, t = momentum(x, y, w, t)
            w = x
    return w


def momentum(x: Array, y: Array, w: Array, t: float) -> tuple[Array, float]:
    """The next y and t of Nesterov's momentum after the step from y to x, w being the previous x; with restarts."""
    if (y - x) @ (x - w) > 0:
        t = 1.0
    following = (1 + np.sqrt(1 + 4 * t * t)) / 2
    return x + (t - 1) / following * (x - w), following


def adversarial(z: Array, norm: str, eps: float, steps: int) -> Array:
    """w (d,) after adversarial training against perturbations of size `eps` in `norm`, below the largest margin.

    The attack changes every z_i.w by the same -eps ||w|| (the dual of `norm`), so the log of the loss is
    log mean exp(-z_i.w) + eps ||w||. It is minimised by proximal gradients with Nesterov's momentum and restarts. At
    its infimum no point is misclassified within eps.
    """
    w, t, step = np.zeros(z.shape[1]), 1.0, 1 / (z * z).sum(1).max()
    y = w.copy()
    for _ in range(steps):
        x = prox(y + step * ascent(z, y), step * eps, norm)
        y, t = momentum(x, y, w, t)
        w = x
    return w


def prox(v: Array, t: float, norm: str) -> Array:
    """argmin_w ||w - v||^2 / 2 + t ||w||, the dual of `norm`, for v (d,). Raises UserError for an unknown norm."""
    match norm:
        case "linf":
            return np.asarray(np.sign(v) * np.maximum(np.abs(v) - t, 0))
        case "l2":
            size = np.sqrt(v @ v)
            return v * max(0.0, float(1 - t / size)) if size else v
        case "l1":
            return v - _to_l1_ball(v, t)
        case "fourier-linf":
            f = np.fft.rfft(v, norm="ortho")
            shrunk = f * np.maximum(0, 1 - t / np.maximum(np.abs(f), 1e-300))
            return np.asarray(np.fft.irfft(shrunk, n=len(v), norm="ortho"))
        case _:
            raise unknown("norm", norm, ("linf", "l2", "l1", "fourier-linf"))


def _to_l1_ball(v: Array, radius: float) -> Array:
    """The nearest point to v in the l1 ball of `radius` (Duchi et al. 2008)."""
    a = np.abs(v)
    if a.sum() <= radius:
        return v
    sorted_ = np.sort(a)[::-1]
    excess = np.cumsum(sorted_) - radius
    last = max(np.flatnonzero(sorted_ * np.arange(1, len(a) + 1) > excess), default=0)  # 0: a radius lost in rounding
    return np.asarray(np.sign(v) * np.maximum(a - excess[last] / (last + 1), 0))
