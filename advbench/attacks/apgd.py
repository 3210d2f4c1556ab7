"""Auto-PGD: Croce and Hein 2020, arXiv:2003.01690, algorithm 1.

z = P(x_k + eta d_k), x_{k+1} = P(x_k + alpha (z - x_k) + (1 - alpha)(x_k - x_{k-1})), alpha = 0.75 (1 in the first
step). eta starts at 2 eps. At a checkpoint w_j it is halved and the search restarts from the best point, if the
objective rose in at most a share rho of the steps since the last checkpoint, or if neither eta nor the best value has
changed since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from advbench import rng
from advbench.attacks import apgd_l1
from advbench.attacks.aimed import Aimed
from advbench.attacks.malt import CANDIDATES, nearest_classes
from advbench.engine.attack import Answer, Attack, Problem, Samples, State
from advbench.engine.oracle import Oracle
from advbench.engine.tensors import rows
from advbench.errors import UserError, unknown
from advbench.recipe.fields import Count, Share, Size
from advbench.threat import Linf, banded, check_band

ENTRIES: dict[str, dict[str, Any]] = {
    "apgd-ce": {
        "make": "APGD",
        "set": {"name": "apgd-ce", "loss": "ce"},
        "summary": "Auto-PGD on the cross-entropy, 100 steps (Croce and Hein 2020)",
        "proof": {
            "quick": {"steps": 12, "restarts": 2},
            "needs": {"l2 bound": 1.01, "l1 free": 1.1, "l1 bound": 1.02},
        },
    },
    "apgd-dlr": {
        "make": "APGD",
        "set": {"name": "apgd-dlr", "loss": "dlr"},
        "summary": "Auto-PGD on the difference of logits ratio, 100 steps",
        "proof": {"quick": {"steps": 8}, "needs": {"l2 bound": 1.01, "l1 free": 1.02, "l1 bound": 1.02}},
    },
    "apgd-t": {
        "make": "APGD",
        "set": {"name": "apgd-t", "loss": "dlr", "n_targets": 9},
        "summary": "Auto-PGD on the targeted DLR, the 9 likeliest wrong classes, 100 steps each",
        "proof": {"quick": {"steps": 8}, "needs": {"l2 bound": 1.02, "l1 free": 1.05, "l1 bound": 1.02}},
    },
    "multi-targeted": {
        "make": "APGD",
        "set": {"name": "multi-targeted", "loss": "cw", "targets": "all"},
        "summary": "Auto-PGD on the margin to every wrong class, 100 steps each (Gowal et al. 2019)",
        "proof": {"quick": {"steps": 8}, "needs": {"l2 bound": 1.02, "l1 free": 1.1, "l1 bound": 1.02}},
    },
}
TARGETS = ("likeliest", "malt", "all")


@dataclass
class APGDState(State):
    previous: Tensor  # (S, C, H, W), x_{k-1}
    best: Tensor  # (S, C, H, W), as the next; all others are (S,)
    best_grad: Tensor
    best_value: Tensor
    value: Tensor  # of the objective at x_{k-1}
    step: Tensor
    rises: Tensor  # number of steps since the last checkpoint in which the value rose
    halved: Tensor  # whether the last checkpoint halved the step
    checked_value: Tensor  # best_value at the last checkpoint


@dataclass(frozen=True, kw_only=True)
class APGD(Aimed):
    """Auto-PGD.

    - `rho`: a step size is halved where the objective rose in at most this share of the steps.
    - `n_targets`: one item for each of that many wrong classes; 0 is untargeted.
    - `targets`: which classes these are: "likeliest", of the largest logits; "malt", the nearest ones, were the model
      linear (Melamed et al. 2024, 2407.02240); "all" (MultiTargeted, Gowal et al. 2019, 1910.09338).
    - `larger_eps` (l1 only): take the first 60 % of the steps in larger balls.
    - `band` (fourier-linf only): the lowest and highest radial frequency of the perturbation, in cycles per pixel, 0 to
      0.7072.
    """

    norms = ("linf", "l2", "l1", "fourier-linf")

    steps: Count = 100
    rho: Share = 0.75
    n_targets: Size = 0
    targets: str = "likeliest"
    larger_eps: bool = False
    band: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets not in TARGETS:
            raise unknown("value of targets", self.targets, TARGETS)
        if self.targets != "likeliest" and self.target is not None:
            raise UserError(f"{self.name}: target names the class to aim at: leave out targets={self.targets}")

    def for_model(self, norm: str, classes: int) -> Attack:
        check_band(self.band, norm)
        if self.larger_eps and norm != "l1":
            raise UserError(f"{self.name}: larger_eps is for norm l1, not {norm}")
        attack: Any = super().for_model(norm, classes)
        return replace(attack, n_targets=classes - 1) if self.targets == "all" else attack

    def is_targeted(self) -> bool:
        return bool(self.n_targets) or self.targets == "all" or super().is_targeted()

    def start(self, p: Problem) -> State:
        if p.region.norm == "l1":
            return apgd_l1.start(p, self.steps, self.larger_eps)
        region, x = banded(p.region, self.band), p.region.x
        shape = tuple(x.shape[1:])
        if isinstance(region, Linf):
            noise = rng.uniform(p.key, shape) * 2 - 1
            noise = noise / noise.abs().amax((1, 2, 3), keepdim=True)
        else:
            noise = region.steepest(rng.normal(p.key, shape))
        query = region.project(x + region.e * noise)
        low = torch.full(p.y.shape, -torch.inf, device=x.device)
        zeros = torch.zeros_like(p.y)
        return APGDState(
            query=query,
            i=zeros,
            previous=query,
            best=query,
            best_grad=torch.zeros_like(x),
            best_value=low,
            value=-low,
            step=2 * region.eps.to(x.dtype),
            rises=zeros,
            halved=torch.ones_like(p.y, dtype=torch.bool),
            checked_value=low,
        )

    def step(self, p: Problem, s: Any, a: Answer) -> State:
        if isinstance(s, apgd_l1.L1State):
            return apgd_l1.step(p, s, a, self.steps, self.larger_eps)
        region = banded(p.region, self.band)
        grad, value = a.gradient, a.value
        better = value > s.best_value
        best_value = torch.where(better, value, s.best_value)
        best, best_grad = rows(better, s.query, s.best), rows(better, grad, s.best_grad)
        # The first answer is to the starting point. The first checkpoint compares the best value with it.
        first = s.i == 0
        checked_value = torch.where(first, value, s.checked_value)
        rises = s.rises + (value > s.value)

        most = _most_rises(self.steps, self.rho, p.y.device)[s.i.clamp_max(self.steps)]
        going = most < 0  # no checkpoint
        stuck = ~(s.halved | going) & (checked_value >= best_value)
        halve = (rises <= most) | stuck
        step = torch.where(halve, s.step / 2, s.step)
        x, g = rows(halve, best, s.query), rows(halve, best_grad, grad)

        z = region.project(torch.addcmul(x, region.steepest(g), step.view(-1, 1, 1, 1)))
        alpha = (0.75 + 0.25 * first).view(-1, 1, 1, 1)
        ahead = torch.lerp(s.previous, x, 2.0)  # x + (x - x_{k-1})
        query = region.project(torch.lerp(ahead, z, alpha))
        return APGDState(
            query=query,
            i=s.i + 1,
            previous=x,
            best=best,
            best_grad=best_grad,
            best_value=best_value,
            value=value,
            step=step,
            rises=rises * going,
            halved=torch.where(going, s.halved, halve),
            checked_value=torch.where(going, checked_value, best_value),
        )

    def target_classes_of(self, samples: Samples, oracle: Oracle, norm: str) -> Tensor:
        if self.targets == "malt" and self.n_targets:  # else untargeted, such as apgd-ce beside apgd-t
            return nearest_classes(self, oracle, samples, norm, self.n_targets)
        return super().target_classes_of(samples, oracle, norm)

    def queries(self, classes: int) -> int:
        ordering = min(CANDIDATES, classes - 1) if self.targets == "malt" and self.n_targets else 0
        return self.items(classes) * apgd_l1.answers(self.steps, self.larger_eps) + ordering

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        if self.targets == "likeliest" or not self.n_targets:  # it says nothing; records stay as they are
            del settings["targets"]
        return settings

    @property
    def version(self) -> int:  # type: ignore[override]
        return 2 if self.larger_eps else 1

    def done(self, s: State) -> Tensor:
        return s.i >= apgd_l1.answers(self.steps, self.larger_eps)

    def result(self, s: Any) -> Tensor:
        return s.best  # type: ignore[no-any-return]


@cache
def _most_rises(steps: int, rho: float, device: torch.device) -> Tensor:
    """(steps + 2,): at i, the share rho of the steps since the last checkpoint if there is one after i steps, else -1.

    Section 3.1: windows of 0.22 N steps, then 0.03 N shorter each time, at least 0.06 N.
    """
    table = [-1.0] * (steps + 2)
    window, least, shrink = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    at = window
    while at <= steps:
        table[at] = rho * window
        window = max(window - shrink, least)
        at += window
    return torch.tensor(table, device=device)
