"""Adversarial Concurrent Training: Arani, Sarfraz and Zonooz, BMVC 2020, arXiv:2008.07015. The authors' code was read.

A robust net F (deployed) and a natural net G are trained together, each aligned with the other's outputs:

x'  = argmax_{x' in B(x, eps)} (1 - a) CE(F(x'), y) + a KL(G(x) || F(x'))
L_F = (1 - b) CE(F(x'), y) + b T^2 KL(G(x) || F(x')),  softmax of logits / T, no gradient through G(x)
L_G = (1 - b) CE(G(x), y)  + b T^2 KL(F(x') || G(x)),  likewise, no gradient through F(x')

G(x) and F(x') are computed once, before either net is updated. Each net has its own optimiser. The released attack
averages the CE over the batch but sums the KL, so the KL dominates: `reduction` "released". "mean" reduces both alike.
It has a b for each loss (adv_alpha of F, nat_alpha of G), of which adv_alpha is the attack's a too. All are 0.9 there.

The preset `paper` is the released training of ResNet-18 on CIFAR-10 (there at eps 0.031, and its crops
reflect the image at the border, where ours are black).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from advbench import ranks
from advbench.errors import unknown
from advbench.methods.base import Method, Nets, Objective, Setup, Tools
from advbench.methods.terms import ce, kl
from advbench.models import architectures
from advbench.recipe import Recipe
from advbench.recipe.fields import Positive, Share

ENTRIES: dict[str, dict[str, Any]] = {
    "act": {
        "make": "ACT",
        "summary": "adversarial concurrent training: a robust and a natural net teach each other (Arani et al. 2020)",
        "paper": "Adversarial Concurrent Training: Optimizing Robustness and Accuracy Trade-off of DNNs",
        "arxiv": "2008.07015",
        "year": 2020,
        "claim": "CIFAR-10, ResNet-18: 84.3 % clean and 55.8 % under PGD-20 (AT 82.8 / 51.3, TRADES 82.4 / 52.8)",
        "cost": 1.18,
        "cautions": [
            "no AutoAttack number was ever published",
            "with b = 0.9 the labels have weight 0.1: short schedules need `b_warmup`",
        ],
        "recipe": {"inner.init": "gauss", "inner.rel_step": 0.2258},
        "presets": {
            "paper": {
                "epochs": 200,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "method.b_warmup": 0.0,
                "inner.steps": 10,
                "inner.rel_step": 0.2258,
                "inner.init": "gauss",
                "inner.bn_mode": "eval",
                "inner.warmup": 0.0,
                "optim.lr": 0.1,
                "optim.weight_decay": 5e-4,
                "schedule.name": "piecewise",
                "schedule.milestones": [0.295, 0.595, 0.795],  # after 59, 119 and 159 of 200 epochs
                "schedule.factor": 0.2,
                "average.name": "none",
                "validation.fraction": 0.0,
                "validation.select": "last",
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class ACT(Method):
    """Adversarial concurrent training.

    - `a`: weight of the KL in the attack.
    - `b`: weight of the alignment in the loss of F, and of G unless `b_natural` is given.
    - `b_natural`: weight of the alignment in the loss of G; none for `b`.
    - `T`: temperature of the alignment.
    - `natural_arch`: the architecture of G, a name of `advbench list models` with its default settings and the
      recipe's normalisation; none for a net like F.
    - `b_warmup`: share of the training over which both b grow from 0. It is not in the paper; 0 is as published.
    - `reduction`: how the attack weighs its terms: "released" averages the CE over the batch but sums the KL, as the
      released code does, so the KL dominates; "mean" reduces both alike.
    """

    a: Share = 0.9
    b: Share = 0.9
    b_natural: Share | None = None
    T: Positive = 4.0
    natural_arch: str | None = None
    b_warmup: Share = 0.0
    reduction: Literal["released", "mean"] = "released"

    @property
    def is_paced(self) -> bool:
        return self.b_warmup > 0

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        if self.natural_arch is not None and self.natural_arch not in architectures():
            raise unknown("architecture in method.natural_arch", self.natural_arch, architectures())

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        return {"natural": setup.build(setup.seed, self.natural_arch)}

    def step(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> dict[str, Tensor]:
        zn = nets.parts["natural"](x)
        x_adv = tools.attack(self.objective(nets, zn.detach(), y), x, y)
        return tools.update(lambda: self.losses(nets, zn, nets.f(x_adv), y))

    def objective(self, nets: Nets, zn: Tensor, y: Tensor) -> Objective:
        """The objective (B,) of the attack on F, which maximises its sum. zn (B, K) must carry no gradient."""
        weight = (1 - self.a) / (len(y) * ranks.world() if self.reduction == "released" else 1)

        def value(z: Tensor) -> Tensor:
            za = nets.f(z)
            return weight * ce(za, y) + self.a * kl(zn, za) if self.a else ce(za, y)

        return value

    def losses(self, nets: Nets, zn: Tensor, za: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The terms of L_F and L_G (scalars) for the logits zn = G(x) and za = F(x'), each (B, K)."""
        grown = min(1.0, nets.progress / self.b_warmup) if self.b_warmup else 1.0
        b, b_natural = self.b * grown, (self.b if self.b_natural is None else self.b_natural) * grown
        terms = {"ce": (1 - b) * nets.ce(za, y), "natural_ce": (1 - b_natural) * nets.ce(zn, y)}
        if b:
            terms["kl"] = b * self.T**2 * kl(zn.detach(), za, self.T).mean()
        if b_natural:
            terms["natural_kl"] = b_natural * self.T**2 * kl(za.detach(), zn, self.T).mean()
        return terms
