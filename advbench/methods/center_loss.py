"""Discriminative features by centre loss: Agarwal, Nguyen and Schonfeld, arXiv:1811.00621, in two texts.

The first is of November 2018, for an ECCV workshop. The second is of May 2019, in ICIP 2019 as "Improving Robustness
to Adversarial Examples by Encouraging Discriminative Features". A reconstruction: of both only the abstract could be
read, which names MNIST, CIFAR-10 and CIFAR-100, but no net, lambda, alpha, attack or eps. The centre loss is that of
Wen et al. 2016 (ECCV, equations 2 to 4):

L = CE(f(x), y) + lambda L_C,  L_C = 1/2 mean_i ||z_i - c_{y_i}||^2   (or the sum over the batch)
c_j <- c_j - alpha Delta_j,    Delta_j = sum_{y_i = j} (c_j - z_i) / (1 + n_j),  n_j images of class j in the batch

z = features(x). The centres are updated after each batch by this rule, or trained by SGD on L_C with learning rate
alpha. They are saved and resumed with the run, and have no weight decay. The papers train on clean images; with
adversarial training, z is the features of x' or of x. The adaptive attack is `feature-pgd`: it pulls features to the
centres of the three likeliest wrong classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advbench import ranks
from advbench.errors import UserError
from advbench.methods.base import Method, Nets, Objective, Setup, Tools
from advbench.recipe import Recipe
from advbench.recipe.fields import NotNegative

ENTRIES: dict[str, dict[str, Any]] = {
    "center-loss": {
        "make": "CenterLoss",
        "summary": "standard training with features pulled to the centre of their class (Agarwal et al. 2019)",
        "paper": "Improving Adversarial Robustness by Encouraging Discriminative Features (ECCV workshop 2018; ICIP)",
        "arxiv": "1811.00621",
        "year": 2019,
        "claim": "compact classes are harder to attack, on MNIST, CIFAR-10 and CIFAR-100",
        "cost": 0.09,
        "cautions": [
            "a reconstruction from the abstracts: lambda, nets and eps are unknown; no AutoAttack number exists",
            "helps at small eps only; a related method was over-reported: MMC with AT 55.0 %, 43.5 under AutoAttack",
        ],
        "recipe": {"validation.select": "clean"},
    },
    "center-loss-at": {
        "make": "CenterLoss",
        "set": {"base": "at"},
        "summary": "adversarial training with features pulled to the centre of their class (after Agarwal et al. 2019)",
        "paper": "Improving Adversarial Robustness by Encouraging Discriminative Features (ECCV workshop 2018; ICIP)",
        "arxiv": "1811.00621",
        "year": 2019,
        "claim": "none: the paper trains on clean images",
        "cost": 1.0,
        "cautions": ["a reconstruction from the abstracts; no AutoAttack number was ever published"],
    },
}


class Centers(nn.Module):
    """The class centres `c` (K, D), initially 0: a buffer, or a parameter if `learn`."""

    c: Tensor

    def __init__(self, classes: int, size: int, *, learn: bool) -> None:
        super().__init__()
        start = torch.zeros(classes, size)
        if learn:
            self.c = nn.Parameter(start)
        else:
            self.register_buffer("c", start)

    @torch.no_grad()
    def follow(self, z: Tensor, y: Tensor, alpha: float) -> None:
        """Update the centres: c_j <- c_j - alpha Delta_j for features z (B, D) of classes y (B,)."""
        away = torch.zeros_like(self.c).index_add_(0, y, self.c[y] - z.to(self.c.dtype))
        count = torch.zeros_like(self.c[:, 0]).index_add_(0, y, torch.ones_like(z[:, 0], dtype=self.c.dtype))
        self.c = self.c - alpha * away / (1 + count)[:, None]


@dataclass(frozen=True, kw_only=True)
class CenterLoss(Method):
    """Centre loss, on top of standard or adversarial training. With lambda 0 the result is the base, bit for bit.

    - `lam`: lambda, the weight of L_C.
    - `alpha`: learning rate of the centres.
    - `update`: of the centres: the rule of Wen et al. ("wen"), or SGD on L_C.
    - `reduction`: of L_C over the batch.
    - `base`: standard training on clean images, or adversarial training ("at").
    - `on`: with base "at", whether L_C uses the features of the adversarial or of the clean images.
    """

    lam: NotNegative = 0.1
    alpha: float = 0.5
    update: Literal["wen", "sgd"] = "wen"
    reduction: Literal["mean", "sum"] = "mean"
    base: Literal["standard", "at"] = "standard"
    on: Literal["adversarial", "clean"] = "adversarial"

    @property
    def attacks(self) -> bool:
        return self.base == "at"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",)

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        if not 0 < self.alpha <= 1:
            raise UserError(f"method.alpha is {self.alpha:g}: write a number above 0 and at most 1")

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        return {"centers": Centers(setup.num_classes, setup.feature_dim, learn=self.update == "sgd")}

    def part_optim(self, name: str) -> dict[str, Any]:
        return {"name": "sgd", "lr": self.alpha, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        return super().inner(nets, x, y) if self.attacks else None

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        return self._terms(nets, x, x_adv, y)[0]

    def step(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> dict[str, Tensor]:
        with tools.attack_mode():
            x_adv = self.perturb(nets, x, y, tools)
        features = x.new_zeros(0)

        def losses() -> dict[str, Tensor]:
            nonlocal features
            terms, features = self._terms(nets, x, x_adv, y)
            return terms

        terms = tools.update(losses)
        if self.update == "wen":
            _centers(nets).follow(ranks.whole(features), ranks.whole(y), self.alpha)
        return terms

    def _terms(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The loss terms, and the features (B, D) that L_C used, detached."""
        z, logits = nets.f.features_and_logits(x_adv)
        terms = {"ce": nets.ce(logits, y)}
        if self.lam and self.base == "at" and self.on == "clean":
            z = nets.f.features(x)
        c = _centers(nets).c
        if self.lam:
            # This undoes the factor lambda below: the centres' learning rate is alpha.
            c = c.detach() + (c - c.detach()) / self.lam
        away = (z.float() - c[y]).square().sum(1) / 2
        if self.lam:
            terms["center"] = self.lam * (away.mean() if self.reduction == "mean" else away.sum() * ranks.world())
        apart = torch.pdist(c.detach()).mean()
        nets.note("intra_inter", torch.where(apart > 0, (2 * away.detach()).sqrt().mean() / apart, 1.0))
        return terms, z.detach()


def _centers(nets: Nets) -> Centers:
    centers = nets.parts["centers"]
    assert isinstance(centers, Centers)
    return centers
