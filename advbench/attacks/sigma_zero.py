"""sigma-zero: Cina et al. 2025, arXiv:2402.01879, algorithm 1. The nearest adversarial example in L0.

delta starts at 0 and descends, by Adam, along the gradient of

    max(z_y - max_{c != y} z_c, 0) + 1/n sum_i delta_i^2 / (delta_i^2 + sigma),

scaled to a largest element of 1. tau rises by 0.01 lr where the point was adversarial and falls by as much where it was
not, and elements below tau in modulus are set to 0; lr falls from 1 to 0.1 along a cosine. L0 counts elements
(C x H x W), not pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench.attacks.schedules import cosine
from advbench.engine.attack import Answer, Attack, Problem, State
from advbench.engine.losses import margin
from advbench.recipe.fields import Count, Positive, Share

ENTRIES: dict[str, dict[str, Any]] = {
    "sigma-zero": {
        "make": "SigmaZero",
        "set": {"name": "sigma-zero"},
        "summary": "sigma-zero: nearest point in L0, 1000 steps (Cina et al. 2025)",
        "proof": {"quick": {"steps": 30}, "settings": {"steps": 100}},
    },
}

BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam


@dataclass
class SigmaZeroState(State):
    delta: Tensor  # (S, C, H, W), as the two moments of Adam
    first: Tensor
    second: Tensor
    tau: Tensor  # (S,)


@dataclass(frozen=True, kw_only=True)
class SigmaZero(Attack):
    """sigma-zero.

    - `sigma`: the width of the smooth count.
    - `lr`: the first step size of Adam; the last is a tenth of it.
    - `tau`: the first threshold.
    - `tau_step`: the change of tau in a step, as a share of lr.
    """

    norms = ("l0",)
    minimum_norm: ClassVar[bool] = True

    steps: Count = 1000
    loss: str = field(init=False, default="cw")
    sigma: Positive = 1e-3
    lr: Positive = 1.0
    tau: Share = 0.3
    tau_step: Share = 0.01

    def objective(self, p: Problem, read: Tensor) -> Tensor:
        return margin(read, p.y).clamp_max(0)

    def start(self, p: Problem) -> SigmaZeroState:
        x, zero = p.region.x, torch.zeros_like(p.region.x)
        return SigmaZeroState(x, torch.zeros_like(p.y), zero, zero, zero, torch.full_like(x[:, 0, 0, 0], self.tau))

    def step(self, p: Problem, s: SigmaZeroState, a: Answer) -> SigmaZeroState:
        x = p.region.x
        squares = s.delta.square()
        count = 2 * self.sigma * s.delta / (squares + self.sigma).square() / x[0].numel()
        g = count - a.gradient
        g = g / g.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)

        lr = cosine(s.i, self.steps, self.lr, self.lr / 10)
        k = (s.i + 1).view(-1, 1, 1, 1).float()
        first, second = BETAS[0] * s.first + (1 - BETAS[0]) * g, BETAS[1] * s.second + (1 - BETAS[1]) * g.square()
        corrected = (second / (1 - BETAS[1] ** k)).sqrt() + TINY
        delta = s.delta - lr.view(-1, 1, 1, 1) * (first / (1 - BETAS[0] ** k)) / corrected
        delta = (x + delta).clamp(0, 1) - x
        tau = (s.tau + torch.where(a.wrong, 1, -1) * self.tau_step * lr).clamp(0, 1)
        delta = torch.where(delta.abs() < tau.view(-1, 1, 1, 1), 0, delta)
        return SigmaZeroState((x + delta).clamp(0, 1), s.i + 1, delta, first, second, tau)
