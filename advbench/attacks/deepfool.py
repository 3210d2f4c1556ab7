"""DeepFool: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2, and section 3.3 for other norms.

At each step the boundaries to all classes are linearised, and the shortest step onto the nearest one is added to r. The
query is x + (1 + overshoot) r, clipped to [0, 1]. The first adversarial query ends the search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench.engine.attack import Answer, Asks, Attack, Problem, State
from advbench.engine.hyperplane import nearest_boundary
from advbench.recipe.fields import Count, NotNegative

ENTRIES: dict[str, dict[str, Any]] = {
    "deepfool": {
        "make": "DeepFool",
        "set": {"name": "deepfool"},
        "summary": "DeepFool: a near adversarial point in few steps, Linf or L2 (Moosavi-Dezfooli et al. 2016)",
        "proof": {"quick": {"steps": 5}, "nearest": {"linf": 1.04, "l2": 1.04}},
    },
}


@dataclass
class DeepFoolState(State):
    r: Tensor  # (S, C, H, W)
    found: Tensor  # (S,) bool: whether a query was adversarial


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """DeepFool.

    `overshoot`: eta of the paper.
    """

    asks: ClassVar[Asks] = "jacobian"
    norms = ("linf", "l2")
    minimum_norm: ClassVar[bool] = True
    losses = ("cw",)

    steps: Count = 50
    loss: str = "cw"
    overshoot: NotNegative = 0.02

    def start(self, p: Problem) -> DeepFoolState:
        x = p.region.x
        return DeepFoolState(x, torch.zeros_like(p.y), torch.zeros_like(x), torch.zeros_like(p.y, dtype=torch.bool))

    def step(self, p: Problem, s: DeepFoolState, a: Answer) -> DeepFoolState:
        f, w = nearest_boundary(p, a)
        # 1e-4 as in the authors' code: without it, a point exactly on a boundary would never cross it.
        length = (f.abs() + 1e-4) / p.region.dual(w).clamp_min(1e-12)
        r = s.r + length.view(-1, 1, 1, 1) * p.region.steepest(w)
        query = (p.region.x + (1 + self.overshoot) * r).clamp(0, 1)
        return DeepFoolState(query, s.i + 1, r, s.found | a.wrong)

    def done(self, s: DeepFoolState) -> Tensor:
        return s.found | (s.i > self.steps)
