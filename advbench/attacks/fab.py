"""Fast Adaptive Boundary attack: Croce and Hein 2020, arXiv:1907.02044, algorithm 1.

The decision boundary is linearised at x_i; d_i is the shortest step onto it from x_i and d_0 the one from the sample x,
both within [0, 1]:

x_{i+1} = (1 - alpha)(x_i + eta d_i) + alpha (x + eta d_0), alpha = min(||d_i|| / (||d_i|| + ||d_0||), alpha_max).

An adversarial x_{i+1} is moved back to (1 - beta) x + beta x_{i+1} before the next step. So each step is followed by a
query for logits alone, which costs at most a third of a pass with its gradient.

The attack searches for the nearest adversarial example. The first restart starts from x; eps only scales the random
starts of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench import rng
from advbench.engine.attack import Answer, Asks, Attack, Problem, State
from advbench.engine.hyperplane import nearest_boundary, to_hyperplane
from advbench.engine.losses import likeliest
from advbench.engine.tensors import rows
from advbench.recipe.fields import Count, Positive, Share

ENTRIES: dict[str, dict[str, Any]] = {
    "fab": {
        "make": "FAB",
        "set": {"name": "fab"},
        "summary": "Fast Adaptive Boundary, nearest point over all classes, 100 steps (Croce and Hein 2020)",
        "proof": {"quick": {"steps": 4, "restarts": 2}, "nearest": {"linf": 1.01, "l2": 1.01, "l1": 1.01}},
    },
    "fab-t": {
        "make": "FABT",
        "set": {"name": "fab-t"},
        "summary": "Fast Adaptive Boundary towards the 9 likeliest wrong classes, 100 steps each",
        "proof": {"quick": {"steps": 4}, "nearest": {"linf": 1.01, "l2": 1.01, "l1": 1.01}},
    },
}
_START = {"linf": 0.3, "l2": 1.0, "l1": 5.0}  # replaces an infinite eps in random starts


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Uses the nearest of the linearised boundaries to all wrong classes: one gradient per class and step.

    `alpha_max`: the largest share of the way back to the sample. `eta`: overshoot beyond the boundary. `beta`: how far
    an adversarial point stays from the sample when it is moved back.
    """

    asks: ClassVar[Asks] = "jacobian"
    norms = ("linf", "l2", "l1")
    version: ClassVar[int] = 2
    minimum_norm: ClassVar[bool] = True
    checks_steps: ClassVar[bool] = True
    losses = ("cw",)  # the boundary is where the margin is 0

    steps: Count = 100
    loss: str = "cw"
    alpha_max: Share = 0.1
    eta: Positive = 1.05
    beta: Share = 0.9

    def start(self, p: Problem) -> State:
        region, x = p.region, p.region.x
        shape = tuple(x.shape[1:])
        noise = rng.uniform(p.key, shape) * 2 - 1 if region.norm == "linf" else rng.normal(p.key, shape)
        size = torch.where(region.eps.isinf(), _START[region.norm], region.eps).to(x.dtype)
        away = (x + noise * (size / 2 / region.size(noise)).view(-1, 1, 1, 1)).clamp(0, 1)
        return State(rows(p.first, x, away), torch.zeros_like(p.y))

    def step(self, p: Problem, s: State, a: Answer) -> State:
        region, x = p.region, p.region.x
        if a.grad is None:
            return State(rows(a.wrong, x + self.beta * (s.query - x), s.query), s.i + 1)
        f, w = self.boundary(p, a)
        rise = torch.linalg.vecdot(w.flatten(1), (s.query - x).flatten(1)) - f
        both = torch.cat([s.query, x])  # both steps at once, which are half as many operations
        d = to_hyperplane(both, torch.cat([w, w]), torch.cat([-f, rise]), region.norm)
        one, other = region.size(d).clamp_min(1e-8).chunk(2)
        alpha = (one / (one + other)).clamp_max(self.alpha_max).view(-1, 1, 1, 1)
        near, far = both.add(d, alpha=self.eta).chunk(2)
        return State(torch.lerp(near, far, alpha).clamp_(0, 1), s.i + 1)

    def boundary(self, p: Problem, a: Answer) -> tuple[Tensor, Tensor]:
        """z_k - z_y (S,), which is 0 on the boundary to class k, and its gradient (S, C, H, W)."""
        return nearest_boundary(p, a)

    def queries(self, classes: int) -> int:
        return self.updates(classes)  # the second one of a turn is to the point after the step

    def done(self, s: State) -> Tensor:
        return s.i >= 2 * self.steps


@dataclass(frozen=True, kw_only=True)
class FABT(FAB):
    """Uses the boundary to one target class: one gradient per step.

    `n_targets`: how many of the likeliest wrong classes, an item for each.
    """

    asks: ClassVar[Asks] = "gradient"

    n_targets: Count = 9

    def target_classes(self, logits: Tensor, y: Tensor) -> Tensor:
        return likeliest(logits, y, self.n_targets)

    def boundary(self, p: Problem, a: Answer) -> tuple[Tensor, Tensor]:
        return a.value, a.gradient
