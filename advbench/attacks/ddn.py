"""Decoupled Direction and Norm: Rony et al. 2019, arXiv:1811.09600, algorithm 1.

delta_{k+1} = eps_{k+1} (delta_k + alpha g) / ||delta_k + alpha g||_2, g the loss's gradient scaled to norm 1. The norm
eps shrinks by the factor 1 - gamma if the last point was adversarial, and grows by 1 + gamma otherwise. alpha falls
from 1 to 0.01 along a cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench import rng
from advbench.attacks.schedules import cosine
from advbench.engine.attack import Answer, Attack, Problem, State
from advbench.engine.tensors import rows, surely_none
from advbench.recipe.fields import Count, NotNegative, Share, Size

ENTRIES: dict[str, dict[str, Any]] = {
    "ddn": {
        "make": "DDN",
        "set": {"name": "ddn"},
        "summary": "Decoupled Direction and Norm: nearest point in L2, 1000 steps (Rony et al. 2019)",
        "proof": {"quick": {"steps": 12}, "settings": {"steps": 300}, "nearest": {"l2 free": 1.003}},
    },
}


@dataclass
class DDNState(State):
    delta: Tensor  # (S, C, H, W)
    norm: Tensor  # (S,) float64: eps of the paper


@dataclass(frozen=True, kw_only=True)
class DDN(Attack):
    """Decoupled Direction and Norm.

    `gamma`: the relative change of the norm in a step. `init_norm`: its first value. `levels`: round points to that
    many values per element (256 in the paper, as in 8-bit images), or 0 for no rounding.
    """

    norms = ("l2",)
    minimum_norm: ClassVar[bool] = True

    steps: Count = 1000
    gamma: Share = 0.05
    init_norm: NotNegative = 1.0
    levels: Size = 0

    def start(self, p: Problem) -> DDNState:
        x = p.region.x
        return DDNState(x, torch.zeros_like(p.y), torch.zeros_like(x), torch.full_like(p.region.eps, self.init_norm))

    def step(self, p: Problem, s: DDNState, a: Answer) -> DDNState:
        x = p.region.x
        g = p.region.steepest(_nonzero(p, s, a.gradient))
        alpha = cosine(s.i, self.steps, 1.0, 0.01)
        farthest = p.region.size(torch.maximum(x, 1 - x)).double()
        norm = torch.minimum(torch.where(a.wrong, 1 - self.gamma, 1 + self.gamma) * s.norm, farthest)
        delta = s.delta + alpha.view(-1, 1, 1, 1) * g
        delta = norm.float().view(-1, 1, 1, 1) * delta / p.region.size(delta).clamp_min(1e-12).view(-1, 1, 1, 1)
        query = (x + delta).clamp(0, 1)
        if self.levels:
            query = (query * (self.levels - 1)).round() / (self.levels - 1)
        return DDNState(query, s.i + 1, query - x, norm)


def _nonzero(p: Problem, s: DDNState, gradient: Tensor) -> Tensor:
    """The gradient; rows that are zero are replaced by a random direction."""
    zero = gradient.flatten(1).abs().amax(1) == 0
    if surely_none(zero):
        return gradient
    return rows(zero, rng.normal(rng.fold(p.key, s.i), tuple(gradient.shape[1:])), gradient)
