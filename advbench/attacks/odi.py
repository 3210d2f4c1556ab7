"""The margin attack with output-diversified starts: the core of A3 (Liu et al. 2022, arXiv:2203.05154), whose starts
are those of Tashiro et al. 2020 (arXiv:2003.06878).

A restart begins at a random point of the ball. N_o steps of size eps climb sum_c w_c z_c, w ~ U[-1, 1]^K drawn for the
restart; the first restart leaves them out. Then S steps climb the margin max_{c != y} z_c - z_y, step s of size

    alpha_s = a + (eps - a) (1 + cos(pi s / (S + 1))) / 2,  a = 0.1 eps for S <= 10, else 0.001 eps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advbench import rng
from advbench.attacks.schedules import cosine
from advbench.engine.attack import Answer, Attack, Problem, State
from advbench.engine.losses import margin
from advbench.recipe.fields import Count, Size

ENTRIES: dict[str, dict[str, Any]] = {
    "odi-margin": {
        "make": "ODIMargin",
        "set": {"name": "odi-margin"},
        "summary": "the margin from 10 output-diversified starts, 7 + 20 steps each (Liu et al. 2022)",
        "proof": {"quick": {"steps": 4, "restarts": 2, "odi_steps": 2}, "needs": {"l2 free": 1.01, "l2 bound": 1.1}},
    },
}


@dataclass
class ODIState(State):
    begin: Tensor  # (S,): the number of the first query whose margin is climbed


@dataclass(frozen=True, kw_only=True)
class ODIMargin(Attack):
    """The margin from output-diversified starts.

    - `steps`: S, the steps on the margin.
    - `odi_steps`: N_o, the steps before them, in every restart but the first.
    """

    steps: Count = 20
    restarts: Count = 10
    loss: str = field(init=False, default="cw")
    odi_steps: Size = 7

    def updates(self, classes: int) -> int:
        return self.steps * self.restarts + self.odi_steps * (self.restarts - 1)

    def objective(self, p: Problem, read: Tensor) -> Tensor:
        assert p.i is not None
        w = 2 * rng.uniform(rng.fold(p.key, 3), (read.shape[1],)) - 1
        return torch.where(p.i < self._begin(p), (w * read).sum(1), margin(read, p.y))

    def start(self, p: Problem) -> ODIState:
        return ODIState(p.region.sample(p.key), torch.zeros_like(p.y), self._begin(p))

    def step(self, p: Problem, s: ODIState, a: Answer) -> ODIState:
        least = 0.1 if self.steps <= 10 else 0.001
        share = cosine(s.i - s.begin, self.steps + 1, 1.0, least)
        alpha = torch.where(s.i < s.begin, 1.0, share).view(-1, 1, 1, 1) * p.region.e
        return ODIState(p.region.project(s.query + alpha * p.region.steepest(a.gradient)), s.i + 1, s.begin)

    def done(self, s: ODIState) -> Tensor:
        return s.i > self.steps + s.begin

    def _begin(self, p: Problem) -> Tensor:
        return torch.where(p.first, 0, self.odi_steps)
