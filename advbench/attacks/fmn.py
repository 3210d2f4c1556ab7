"""Fast Minimum-Norm attack: Pintor et al. 2021, arXiv:2102.12827, algorithm 1.

Each iteration takes a step of size alpha along the margin's gradient (scaled to L2 norm 1), then projects onto the ball
of size eps. eps shrinks by the factor 1 - gamma if the last point was adversarial and grows by 1 + gamma if only an
earlier one was. Before the first adversarial point it is the linear estimate ||delta|| + |margin| / ||gradient||_dual.
alpha and gamma fall along a cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench.attacks.schedules import cosine
from advbench.engine.attack import Answer, Attack, Problem, State
from advbench.engine.losses import LOSSES
from advbench.recipe.fields import Count, NotNegative, Positive
from advbench.threat import around

ENTRIES: dict[str, dict[str, Any]] = {
    "fmn": {
        "make": "FMN",
        "set": {"name": "fmn"},
        "summary": "Fast Minimum-Norm attack: nearest point in Linf, L2 or L1, 1000 steps (Pintor et al. 2021)",
        "proof": {"quick": {"steps": 12}, "settings": {"steps": 300}, "nearest": {"l1 bound": 1.003}},
    },
}

SMALLEST = 1e-6  # size of a step outwards, also from a tie of two logits, where the boundary is at distance 0


@dataclass
class FMNState(State):
    size: Tensor  # (S,) float64: eps
    nearest: Tensor  # (S,) float64: the norm of the nearest adversarial perturbation so far, inf if there is none


@dataclass(frozen=True, kw_only=True)
class FMN(Attack):
    """Fast Minimum-Norm.

    `alpha_init`: the first step size, which falls to a hundredth of it. `gamma_init`: the first relative change of eps
    in a step. `gamma_final`: the last one.
    """

    norms = ("linf", "l2", "l1")
    minimum_norm: ClassVar[bool] = True
    losses = tuple(LOSSES)  # kl and its gradient are 0 at the image itself

    steps: Count = 1000
    loss: str = "cw"
    alpha_init: Positive = 1.0
    gamma_init: NotNegative = 0.05
    gamma_final: NotNegative = 0.001

    def start(self, p: Problem) -> FMNState:
        infinite = torch.full_like(p.region.eps, torch.inf)
        return FMNState(p.region.x, torch.zeros_like(p.y), infinite, infinite)

    def step(self, p: Problem, s: FMNState, a: Answer) -> FMNState:
        region, x = p.region, p.region.x
        alpha = cosine(s.i, self.steps, self.alpha_init, self.alpha_init / 100)
        gamma = cosine(s.i, self.steps, self.gamma_init, self.gamma_final).double()
        here = region.size(s.query.double() - x.double())
        nearest = torch.where(a.wrong, torch.minimum(here, s.nearest), s.nearest)

        estimate = here + a.value.abs().double() / region.dual(a.gradient).double().clamp_min(1e-12)
        # Growth by gamma is needed too: the estimate can stall at the border of [0, 1] or because of rounding.
        grown = torch.where(s.size.isinf(), 0, s.size) * (1 + gamma)
        outwards = torch.where(nearest.isinf(), torch.maximum(estimate, grown), grown).clamp_min(SMALLEST)
        size = torch.where(a.wrong, torch.minimum(s.size * (1 - gamma), nearest), outwards)
        size = torch.minimum(size, region.size(torch.maximum(x, 1 - x)).double())

        scale = a.gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        stepped = s.query + (alpha / scale).view(-1, 1, 1, 1) * a.gradient
        return FMNState(around(region.norm, x, size).project(stepped), s.i + 1, size, nearest)
