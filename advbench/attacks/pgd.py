"""Projected gradient descent: Madry et al. 2018, arXiv:1706.06083.

x_{t+1} = P(x_t + alpha d_t), d_t the norm's steepest direction for the loss's gradient at x_t, and P the projection
onto the ball cut to [0, 1]. FGSM (Goodfellow et al. 2015, 1412.6572) is one step of size eps without a random start.
With momentum mu (MI-FGSM, Dong et al. 2018, 1710.06081) d_t is the steepest direction for
g_t = mu g_{t-1} + grad / ||grad||_1. In L1 a step goes along the signs of the largest gradient elements (SLIDE, Tramer
and Boneh 2019, 1904.13000).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advbench.attacks.aimed import Aimed
from advbench.engine.attack import Answer, Attack, Problem, State
from advbench.engine.losses import KL
from advbench.errors import UserError, unknown
from advbench.recipe.fields import Count, NotNegative, Size
from advbench.rng import normal, signs, uniform
from advbench.threat import L1, Region, banded, check_band

ENTRIES: dict[str, dict[str, Any]] = {
    "pgd": {
        "make": "PGD",
        "set": {"name": "pgd", "steps": 10},
        "summary": "projected gradient descent, 10 steps of eps / 4, uniform start (Madry et al. 2018)",
        "proof": {
            "quick": {"steps": 4},
            "needs": {"l2 free": 1.03, "l2 bound": 1.1, "l1 bound": 2, "fourier-linf": 1.01},
        },
    },
    "fgsm": {
        "make": "PGD",
        "set": {"name": "fgsm", "steps": 1, "rel_step": 1.0, "random_start": False},
        "summary": "fast gradient sign method, one step of size eps (Goodfellow et al. 2015)",
        "proof": {"needs": {"l2 bound": 1.3, "l1 bound": None}},
    },
    "mi-fgsm": {
        "make": "PGD",
        "set": {"name": "mi-fgsm", "steps": 10, "rel_step": 0.1, "random_start": False, "momentum": 1.0},
        "summary": "momentum iterative FGSM, 10 steps of eps / 10 (Dong et al. 2018)",
        "proof": {"quick": {"steps": 4}, "needs": {"l2 bound": 1.3, "l1 bound": 1.3}},
    },
    "rfgsm": {
        "make": "PGD",
        "set": {"name": "rfgsm", "steps": 1, "rel_step": 0.5, "init": "signs"},
        "summary": "half a step of random signs, half a gradient step (Tramer et al. 2018)",
        "proof": {"needs": {"linf": 5}},
    },
    "fgsm-rs": {
        "make": "PGD",
        "set": {"name": "fgsm-rs", "steps": 1, "rel_step": 1.25},
        "summary": "uniform start and one step of 1.25 eps (Wong et al. 2020)",
        "proof": {"needs": {"linf": 1.3, "l2": 1.5, "l1 bound": None, "fourier-linf": 1.5}},
    },
    "n-fgsm": {
        "make": "PGD",
        "set": {"name": "n-fgsm", "steps": 1, "rel_step": 1.0, "init": "noise"},
        "summary": "noise in 2 eps and one step of eps, projected at the end (de Jorge et al. 2022)",
        "proof": {"needs": {"linf free": 10, "linf bound": 5}},
    },
}
INITS = ("uniform", "gauss", "signs", "noise")


@dataclass
class PGDState(State):
    velocity: Tensor  # g_t


@dataclass(frozen=True, kw_only=True)
class PGD(Aimed):
    """Projected gradient descent.

    - `rel_step`: step size / eps.
    - `step_size`: an absolute step size, in place of `rel_step`.
    - `random_start`: whether the first query is drawn by `init`; else it is x.
    - `init`: the random start: "uniform", a point of the ball; "gauss", x + 0.001 N(0, I) (TRADES); "signs", x + eps /
      2 random signs (Tramer et al. 2018, 1705.07204; linf only); "noise", x + U(-2 eps, 2 eps) (N-FGSM, de Jorge et al.
      2022, 2202.01181; linf only).
    - `momentum`: mu.
    - `n_targets`: one item for each of that many likeliest wrong classes; 0 is untargeted.
    - `sparsity` (l1 only): the share of the elements that a step does not change.
    - `band` (fourier-linf only): the lowest and highest radial frequency of the perturbation, in cycles per pixel, 0 to
      0.7072.
    """

    norms = ("linf", "l2", "l1", "fourier-linf")

    steps: Count = 10
    rel_step: NotNegative = 0.25
    step_size: NotNegative | None = None
    random_start: bool = True
    init: str = "uniform"
    momentum: NotNegative = 0.0
    n_targets: Size = 0
    sparsity: float = 0.99
    band: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in INITS:
            raise unknown("init", self.init, INITS)
        if not 0 <= self.sparsity < 1:
            raise UserError(f"{self.name}: sparsity is {self.sparsity:g}, but must lie in [0, 1)")
        if self.loss == KL and not self.random_start:
            raise UserError(f"{self.name}: the loss {KL} is flat at the image itself: set random_start=true")

    def for_model(self, norm: str, classes: int) -> Attack:
        check_band(self.band, norm)
        if self.init in ("signs", "noise") and norm != "linf":
            raise UserError(f"{self.name}: init {self.init} has no form for norm {norm}: choose linf")
        return super().for_model(norm, classes)

    def is_targeted(self) -> bool:
        return bool(self.n_targets) or super().is_targeted()

    def start(self, p: Problem) -> PGDState:
        region, x = banded(p.region, self.band), p.region.x
        shape = tuple(x.shape[1:])
        if not self.random_start:
            query = x
        elif self.init == "uniform":
            query = region.sample(p.key)
        elif self.init == "gauss":
            query = region.project(x + 0.001 * normal(p.key, shape))
        elif self.init == "signs":
            query = region.project(x + 0.5 * region.e * signs(p.key, shape))
        else:
            query = (x + region.e * (4 * uniform(p.key, shape) - 2)).clamp(0, 1)
        return PGDState(query, torch.zeros_like(p.y), torch.zeros_like(x))

    def step(self, p: Problem, s: PGDState, a: Answer) -> PGDState:
        region = banded(p.region, self.band)
        g, velocity = a.gradient, s.velocity
        if self.momentum:
            g = velocity = self.momentum * velocity + g / g.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
        alpha = self.step_size if self.step_size is not None else self.rel_step * region.e
        query = region.project(s.query + alpha * self._direction(region, s.query, g))
        return PGDState(query, s.i + 1, velocity)

    def _direction(self, region: Region, query: Tensor, g: Tensor) -> Tensor:
        if not isinstance(region, L1):
            return region.steepest(g)
        # Without the elements that cannot move: at the border of [0, 1], they would use up part of the step.
        g = torch.where(((query <= 0) & (g < 0)) | ((query >= 1) & (g > 0)), 0, g)
        size = g[0].numel()
        count = max(round((1 - self.sparsity) * size), 1)
        least = g.abs().flatten(1).topk(count, dim=1).values[:, -1].view(-1, 1, 1, 1)
        d = g.sign() * (g.abs() >= least)
        return d / d.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)
