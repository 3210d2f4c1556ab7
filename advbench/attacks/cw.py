"""Carlini and Wagner's L2 attack: 2017, arXiv:1608.04644, section VI.A.

Adam minimises ||x' - x||_2^2 + c max(z_y - max_{k != y} z_k, -kappa) over w, x' = (tanh w + 1) / 2, which keeps x' in
[0, 1]. c is found by a binary search: its value becomes the upper bound if an adversarial example was found, the lower
bound otherwise. The next c is the middle of the bounds, or ten times c while there is no upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench.engine.attack import Answer, Attack, Problem, State
from advbench.engine.tensors import rows
from advbench.recipe.fields import Count, NotNegative, Positive

ENTRIES: dict[str, dict[str, Any]] = {
    "cw-l2": {
        "make": "CW",
        "set": {"name": "cw-l2"},
        "summary": "Carlini and Wagner's L2 attack: nearest point, 9 searches of 1000 steps (2017)",
        "proof": {
            "quick": {"searches": 2, "iterations": 6},
            "settings": {"iterations": 200},
            "nearest": {"l2 free": 1.6, "l2 bound": 1.06},
        },
    },
}
_BETA_1, _BETA_2 = 0.9, 0.999
_SHRINK = 1 - 1e-6  # keeps the arctanh of black and white finite


@dataclass
class CWState(State):
    w: Tensor
    mean: Tensor  # Adam's first moment
    square: Tensor  # Adam's second moment
    c: Tensor  # (S,), as the next three
    low: Tensor  # bounds of c
    high: Tensor
    found: Tensor  # bool: whether the run with this c found an adversarial example


@dataclass(frozen=True, kw_only=True)
class CW(Attack):
    """Carlini and Wagner's attack.

    `searches`: number of values of c. `iterations`: steps for each value. `lr`: Adam's learning rate. `c_init`: the
    first c. `kappa`: the margin to reach.
    """

    norms = ("l2",)
    minimum_norm: ClassVar[bool] = True
    main_count: ClassVar[str] = "iterations"
    losses = ("cw",)

    steps: int = field(init=False, default=1)
    loss: str = "cw"
    searches: Count = 9
    iterations: Count = 1000
    lr: Positive = 0.01
    c_init: Positive = 1e-3
    kappa: NotNegative = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self.searches * self.iterations)
        super().__post_init__()

    def start(self, p: Problem) -> CWState:
        w = self._first(p)
        zeros, none = torch.zeros_like(w), torch.zeros_like(p.y, dtype=torch.bool)
        c = torch.full(p.y.shape, self.c_init, device=w.device)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        return CWState(_image(w), torch.zeros_like(p.y), w, zeros, zeros, c, low, high, none)

    def step(self, p: Problem, s: CWState, a: Answer) -> CWState:
        found = s.found | a.wrong
        active = (a.value < self.kappa).float() * s.c
        g = 2 * (s.query - p.region.x) - active.view(-1, 1, 1, 1) * a.gradient
        g = g * 2 * s.query * (1 - s.query)  # dx' / dw
        t = (s.i % self.iterations + 1).view(-1, 1, 1, 1)
        mean = _BETA_1 * s.mean + (1 - _BETA_1) * g
        square = _BETA_2 * s.square + (1 - _BETA_2) * g**2
        scale = (square / (1 - _BETA_2**t)).sqrt() + 1e-8
        w = s.w - self.lr * (mean / (1 - _BETA_1**t)) / scale

        over = (s.i + 1) % self.iterations == 0
        high = torch.where(over & found, torch.minimum(s.high, s.c), s.high)
        low = torch.where(over & ~found, torch.maximum(s.low, s.c), s.low)
        c = torch.where(over, torch.where(high.isinf(), 10 * s.c, (low + high) / 2), s.c)
        w = rows(over, self._first(p), w)
        fresh = torch.zeros_like(w)
        return CWState(
            query=_image(w),
            i=s.i + 1,
            w=w,
            mean=rows(over, fresh, mean),
            square=rows(over, fresh, square),
            c=c,
            low=low,
            high=high,
            found=found & ~over,
        )

    def _first(self, p: Problem) -> Tensor:
        # torch.atanh would depend on an element's place in the batch, in the last bit.
        t = (2 * p.region.x - 1) * _SHRINK
        return (torch.log1p(t) - torch.log1p(-t)) / 2


def _image(w: Tensor) -> Tensor:
    return (torch.tanh(w) + 1) / 2
