"""Probability margin attack: Xie et al. 2025, arXiv:2411.15210.

Two runs of N steps from random points of the ball. With p = softmax(z) and m the likeliest wrong class, the first half
of the first run climbs -p_y and that of the second p_m; the second halves climb the margin p_m - p_y. Step k is

    alpha_k = eps (1 + cos(pi (k - 1) / (N / 2)))  for k = 0 to N / 2, then the same again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advbench.attacks.schedules import cosine
from advbench.engine.attack import Answer, Attack, Problem, State
from advbench.recipe.fields import Count

ENTRIES: dict[str, dict[str, Any]] = {
    "pma": {
        "make": "PMA",
        "set": {"name": "pma"},
        "summary": "probability margin attack, 2 runs of 100 steps (Xie et al. 2025)",
        "proof": {"quick": {"steps": 8}, "needs": {"l2 free": 1.01, "l2 bound": 1.1}},
    },
}


@dataclass(frozen=True, kw_only=True)
class PMA(Attack):
    """The probability margin. Probabilities saturate where logits are large.

    - `steps`: N.
    - `restarts`: the number of runs, which begin with -p_y and with p_m in turn.
    """

    steps: Count = 100
    restarts: Count = 2
    loss: str = field(init=False, default="cw")

    def needs_small_logits(self) -> bool:
        return True

    def objective(self, p: Problem, read: Tensor) -> Tensor:
        assert p.i is not None and p.restart is not None
        probabilities = read.softmax(1)
        own = probabilities.gather(1, p.y[:, None])[:, 0]
        rival = probabilities.scatter(1, p.y[:, None], -1).amax(1)
        early, first = 2 * p.i < self.steps, p.restart % 2 == 0
        return torch.where(early & first, 0, rival) - torch.where(early & ~first, 0, own)

    def start(self, p: Problem) -> State:
        return State(p.region.sample(p.key), torch.zeros_like(p.y))

    def step(self, p: Problem, s: State, a: Answer) -> State:
        half = max(self.steps / 2, 1)
        k = torch.where(s.i <= half, s.i, s.i - half)
        alpha = cosine(k - 1, half, 2.0, 0.0).view(-1, 1, 1, 1) * p.region.e
        return State(p.region.project(s.query + alpha * p.region.steepest(a.gradient)), s.i + 1)
