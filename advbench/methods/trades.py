"""TRADES: Zhang et al. 2019, arXiv:1901.08573, equation 5.

min_f E[ CE(f(x), y) + beta max_{x' in B(x, eps)} KL(f(x) || f(x')) ]

As in the released code, the attack starts at x + 0.001 N(0, I) and takes f(x) as constant, and the outer gradient
flows through both sides of the KL. Clean and adversarial images form two train-mode batches.

The paper smooths no labels. With label smoothing s the cross-entropy alone becomes (1 - s) CE + s mean_k(-log p_k(x)),
least where p_y(x) = 1 - s + s / K; the KL and the attack stay as they are. A small change d of the logit z_y then costs
a KL of p_y (1 - p_y) d^2 / 2, which for s = 0.4 and K = 10 does not fall below 0.23 d^2 / 2 on images that are learned
perfectly, in place of 0: the same beta holds these images back more. So tune beta again, or set label_smoothing=0.

The preset `paper` is the released training of WRN-34-10 on CIFAR-10 (there at eps 0.031).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from advbench.methods.base import Method, Nets, Objective
from advbench.methods.terms import check_kl_start, kl, kl_objective
from advbench.recipe import Recipe
from advbench.recipe.fields import NotNegative

ENTRIES: dict[str, dict[str, Any]] = {
    "trades": {
        "make": "TRADES",
        "summary": "clean cross-entropy plus beta x KL to the adversarial prediction (Zhang et al. 2019)",
        "paper": "Theoretically Principled Trade-off between Robustness and Accuracy",
        "arxiv": "1901.08573",
        "year": 2019,
        "claim": "CIFAR-10, Linf: 49.5 % (ResNet-18) and 53.1 % (WRN-34-10, eps 0.031) under AutoAttack",
        "cost": 1.18,
        "cautions": [
            "eps 0.031 of the paper is not 8/255: the numbers differ by more than a point",
            "label_smoothing (0.4 except on digits, MNIST and Fashion-MNIST) changes the cross-entropy and not the KL: "
            "beta = 6 was chosen without it, so set label_smoothing=0 or tune beta again",
        ],
        "recipe": {"inner.init": "gauss", "inner.rel_step": 0.2258},
        "presets": {
            "paper": {
                "epochs": 76,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "method.beta": 6.0,
                "inner.steps": 10,
                "inner.rel_step": 0.2258,
                "inner.init": "gauss",
                "inner.bn_mode": "eval",
                "inner.warmup": 0.0,
                "optim.lr": 0.1,
                "optim.weight_decay": 2e-4,
                "schedule.name": "piecewise",
                "schedule.milestones": [0.9736842105],  # after 74 of 76 epochs
                "schedule.factor": 0.1,
                "average.name": "none",
                "validation.fraction": 0.0,
                "validation.select": "last",
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class TRADES(Method):
    """TRADES.

    `beta`: weight of the KL, 1 / lambda in the paper; 0 is standard training.
    """

    beta: NotNegative = 6.0

    @property
    def attacks(self) -> bool:
        return self.beta > 0

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        if self.attacks:
            check_kl_start(recipe)

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        return kl_objective(nets.f, x) if self.attacks else None

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        clean = nets.f(x)
        terms = {"ce": nets.ce(clean, y)}
        if self.beta:
            terms["kl"] = self.beta * kl(clean, nets.f(x_adv)).mean()
        return terms
