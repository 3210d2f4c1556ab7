"""Projected gradient descent: Madry et al. 2018, arXiv:1706.06083.

x_{t+1} = P(x_t + alpha d_t), d_t the steepest direction of the norm for the loss's gradient at x_t, and P the
projection onto the ball cut to [0, 1]. FGSM (Goodfellow et al. 2015, 1412.6572) is one step of size eps
without a random start. With momentum mu (MI-FGSM, Dong et al. 2018, 1710.06081) the direction is
that of g_t = mu g_{t-1} + grad / ||grad||_1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advbench.attacks.engine import Answer, Attack, Problem, State
from advbench.errors import unknown
from advbench.rng import normal

ENTRIES: dict[str, dict[str, Any]] = {
    "pgd": {
        "make": "PGD",
        "set": {"name": "pgd", "steps": 10},
        "summary": "projected gradient descent, 10 steps of eps / 4, uniform start (Madry et al. 2018)",
    },
    "fgsm": {
        "make": "PGD",
        "set": {"name": "fgsm", "steps": 1, "rel_step": 1.0, "random_start": False},
        "summary": "fast gradient sign method, one step of size eps (Goodfellow et al. 2015)",
    },
    "mi-fgsm": {
        "make": "PGD",
        "set": {"name": "mi-fgsm", "steps": 10, "rel_step": 0.1, "random_start": False, "momentum": 1.0},
        "summary": "momentum iterative FGSM, 10 steps of eps / 10 (Dong et al. 2018)",
    },
}
INITS = ("uniform", "gauss")


@dataclass
class PGDState(State):
    velocity: Tensor


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """`rel_step` is step / eps; `step_size`, absolute, overrides it. With `random_start` the first query is
    uniform in the ball, or x + 0.001 N(0, I) for `init="gauss"` (TRADES); without, it is x."""

    norms = ("linf", "l2", "l1", "fourier-linf")

    rel_step: float = 0.25
    step_size: float | None = None
    random_start: bool = True
    init: str = "uniform"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in INITS:
            raise unknown("init", self.init, INITS)

    def start(self, p: Problem) -> PGDState:
        x = p.region.x
        if not self.random_start:
            query = x
        elif self.init == "uniform":
            query = p.region.sample(p.key)
        else:
            query = p.region.project(x + 0.001 * normal(p.key, tuple(x.shape[1:])))
        return PGDState(query, torch.zeros_like(p.y), torch.zeros_like(x))

    def step(self, p: Problem, s: PGDState, a: Answer) -> PGDState:
        g, velocity = a.gradient, s.velocity
        if self.momentum:
            g = velocity = self.momentum * velocity + g / g.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
        alpha = self.step_size if self.step_size is not None else self.rel_step * p.region.e
        query = p.region.project(s.query + alpha * p.region.steepest(g))
        return PGDState(query, s.i + 1, velocity)
