"""HopSkipJump: Chen, Jordan and Wainwright 2020, arXiv:1904.02144, algorithms 1 and 2. It sees labels alone.

From a misclassified random image, each round t does four things. It bisects between x and the point, to within theta of
the boundary (theta = n^{-3/2} in L2, n^{-2} in Linf). It estimates the gradient there from the labels phi = +-1 of
B_t = B_0 sqrt(t) points at a distance delta,

    v = 1 / (B - 1) sum_b (phi_b - mean phi) u_b
    delta = sqrt(n) theta ||x_t - x|| (n theta in Linf; 0.1 at first).

It steps along v / ||v||_2 (sign v in Linf) by ||x_t - x|| / sqrt(t), halved until the point misleads; and begins again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench import rng
from advbench.engine.attack import Answer, Asks, Attack, Problem, State
from advbench.engine.tensors import rows
from advbench.recipe.fields import Count
from advbench.threat import Region

ENTRIES: dict[str, dict[str, Any]] = {
    "hopskipjump": {
        "make": "HopSkipJump",
        "set": {"name": "hopskipjump"},
        "summary": "HopSkipJump: nearest point in L2 or Linf by labels alone, 10000 queries (Chen et al. 2020)",
        "proof": {
            "quick": {"n_queries": 60},
            "settings": {"n_queries": 1000},
            "nearest": {"linf": 1.25, "l2": 1.2},
        },
    },
}

DRAW, BISECT, SAMPLE, LEAP = range(4)  # the phases: a random image, bisection, gradient, step
FIRST_DELTA = 0.1


@dataclass
class JumpState(State):
    """`point`: the last point that misleads; the query lies between it and x, beside it or beyond it."""

    phase: Tensor  # (S,)
    point: Tensor  # (S, C, H, W)
    low: Tensor  # (S,) float64: the bisection, as a share of the way from x to the point (L2), or a radius (Linf)
    high: Tensor
    round: Tensor  # (S,): t
    drawn: Tensor  # (S,): points whose labels the gradient's estimate has
    up: Tensor  # (S,): sum of phi
    sum: Tensor  # (S, C, H, W): sum of u
    weighted: Tensor  # (S, C, H, W): sum of phi u
    length: Tensor  # (S,): of the step


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """HopSkipJump. An item whose random images are all classified correctly finds nothing.

    - `n_queries`: the number of queries.
    - `first_samples`: B_0, the number of labels for the first estimate of the gradient.
    """

    asks: ClassVar[Asks] = "logits"
    norms = ("l2", "linf")
    minimum_norm: ClassVar[bool] = True
    main_count: ClassVar[str] = "n_queries"

    steps: int = field(init=False, default=1)
    loss: str = field(init=False, default="cw")
    n_queries: Count = 10000
    first_samples: Count = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self.n_queries)
        super().__post_init__()

    def start(self, p: Problem) -> JumpState:
        x, none, zero = p.region.x, torch.zeros_like(p.y), torch.zeros_like(p.region.eps)
        image = rng.uniform(p.key, tuple(x.shape[1:]))
        nothing = torch.zeros_like(x)
        return JumpState(
            image, none, none, image, zero, zero, none + 1, none, zero.float(), nothing, nothing, zero.float()
        )

    def step(self, p: Problem, s: JumpState, a: Answer) -> JumpState:
        key = rng.fold(p.key, s.i + 1)
        drawing, bisecting, sampling, leaping = (s.phase == phase for phase in range(4))
        s = replace(s, i=s.i + 1)

        # A random image, or a step that was short enough: its point is bisected next.
        found = (drawing | leaping) & a.wrong
        point = rows(found, s.query, s.point)
        reach = torch.ones_like(s.high) if p.region.norm == "l2" else p.region.size((point - p.region.x).double())
        s = replace(s, point=point, low=torch.where(found, 0, s.low), high=torch.where(found, reach, s.high))

        # A bisection, which ends at the misleading side.
        middle = (s.low + s.high) / 2
        high, low = torch.where(bisecting & a.wrong, middle, s.high), torch.where(bisecting & ~a.wrong, middle, s.low)
        limit = self._theta(p) * (1 if p.region.norm == "l2" else high.clamp_max(1))
        near = bisecting & (high - low <= limit)
        edge = self._between(p.region, s.point, high)
        s = replace(s, low=low, high=high, point=rows(near, edge, s.point))

        # One more label for the gradient.
        u = (s.query - s.point) / self._delta(p, s).view(-1, 1, 1, 1)
        phi = torch.where(a.wrong, 1.0, -1.0)
        wide = phi.view(-1, 1, 1, 1)
        s = replace(
            s,
            drawn=torch.where(near, 0, s.drawn + sampling),
            up=torch.where(near, 0, s.up + torch.where(sampling, phi, 0)),
            sum=rows(near, torch.zeros_like(u), rows(sampling, s.sum + u, s.sum)),
            weighted=rows(near, torch.zeros_like(u), rows(sampling, s.weighted + wide * u, s.weighted)),
        )
        full = sampling & (s.drawn >= (self.first_samples * s.round.float().sqrt()).long())

        # The step, and its halves.
        distance = p.region.size((s.point - p.region.x).double()).float()
        shorter = torch.where(leaping & ~a.wrong, s.length / 2, s.length)
        s = replace(s, length=torch.where(full, distance / s.round.float().sqrt(), shorter))

        phase = torch.where(found, BISECT, torch.where(near, SAMPLE, torch.where(full, LEAP, s.phase)))
        s = replace(s, phase=phase, round=s.round + (leaping & found))
        return replace(s, query=self._query(p, s, key))

    def _query(self, p: Problem, s: JumpState, key: Tensor) -> Tensor:
        shape = tuple(p.region.x.shape[1:])
        noise = rng.normal(key, shape) if p.region.norm == "l2" else 2 * rng.uniform(key, shape) - 1
        u = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        beside = (s.point + self._delta(p, s).view(-1, 1, 1, 1) * u).clamp(0, 1)
        mean = (s.up / s.drawn.clamp_min(1)).view(-1, 1, 1, 1)
        v = torch.where(mean.abs() == 1, mean * s.sum, s.weighted - mean * s.sum)
        direction = p.region.steepest(v)
        beyond = (s.point + s.length.view(-1, 1, 1, 1) * direction).clamp(0, 1)
        between = self._between(p.region, s.point, (s.low + s.high) / 2)
        image = rng.uniform(key, shape)
        for phase, query in ((BISECT, between), (SAMPLE, beside), (LEAP, beyond)):
            image = rows(s.phase == phase, query, image)
        return image

    def _between(self, region: Region, point: Tensor, at: Tensor) -> Tensor:
        """The share `at` of the way from x to the point in L2; the nearest to it within the radius `at` in Linf."""
        x, reach = region.x, at.to(region.x.dtype).view(-1, 1, 1, 1)
        between = x + reach * (point - x) if region.norm == "l2" else torch.clamp(point, x - reach, x + reach)
        return between.clamp(0, 1)

    def _theta(self, p: Problem) -> float:
        n = p.region.x[0].numel()
        return float(n ** (-1.5 if p.region.norm == "l2" else -2.0))

    def _delta(self, p: Problem, s: JumpState) -> Tensor:
        n = p.region.x[0].numel()
        scale = (n**0.5 if p.region.norm == "l2" else n) * self._theta(p)
        distance = p.region.size((s.point - p.region.x).double()).float()
        return torch.where(s.round == 1, FIRST_DELTA, scale * distance).clamp_min(1e-12)

    def queries(self, classes: int) -> int:
        return self.updates(classes)  # the first one among them

    def done(self, s: JumpState) -> Tensor:
        return s.i >= self.n_queries
