"""Consistency regularisation: Tack et al., AAAI 2022, arXiv:2103.04623. The authors' code was read.

Two random augmentations T1(x), T2(x) of each image are attacked, and their predictions are made to agree:

L = L_base + lambda JS(softmax(f(x1') / tau), softmax(f(x2') / tau)),  x1' in B(T1(x), eps),  x2' in B(T2(x), eps)

L_base is the loss of adversarial training, TRADES or MART on all 2B images in one train-mode batch, with its own
attack. The gradient flows through both sides of the JS, and there is no factor tau^2.

In the released code, T is crop and flip, then AutoAugment (the CIFAR-10 policy), then Cutout of half the side. In one
of its settings the last two begin at half of the epochs; here they are used from the start. They are recipe settings
of every method, so a control can use the same augmentation.

An update takes 2B rows, so at equal compute the base method with the same batch size has twice the updates. With twice
the epochs and twice the batch size it has equal compute, equal updates, and as many rows in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from advbench.errors import UserError
from advbench.methods.base import Method, Nets, Objective
from advbench.methods.terms import boosted_margin, check_kl_start, js, kl, kl_objective, weighted_kl
from advbench.recipe import Recipe
from advbench.recipe.fields import NotNegative, Positive

ENTRIES: dict[str, dict[str, Any]] = {
    "consistency": {
        "make": "Consistency",
        "summary": "AT on two augmentations of each image whose predictions must agree (Tack et al. 2022)",
        "paper": "Consistency Regularization for Adversarial Robustness",
        "arxiv": "2103.04623",
        "year": 2022,
        "claim": "no robust overfitting: CIFAR-10, PreAct-ResNet-18, last epoch: 48.9 % under AutoAttack (AT 40.7)",
        "cost": 2.0,
        "cautions": [
            "costs two of AT: a fair control has the same augmentation, twice the epochs and twice the batch_size",
            "the augmentation is the recipe's: the paper's is crop, flip, AutoAugment and Cutout",
        ],
        "recipe": {"augment.crop": 1},
    },
    "consistency-trades": {
        "make": "Consistency",
        "set": {"base": "trades"},
        "summary": "consistency between two augmentations, on top of TRADES (Tack et al. 2022)",
        "paper": "Consistency Regularization for Adversarial Robustness",
        "arxiv": "2103.04623",
        "year": 2022,
        "claim": "CIFAR-10, PreAct-ResNet-18: 48.3 % under AutoAttack (TRADES 46.4)",
        "cost": 2.36,
        "cautions": [
            "costs two of TRADES: a fair control has the same augmentation, twice the epochs and twice the batch_size"
        ],
        "recipe": {"augment.crop": 1, "inner.init": "gauss"},
    },
    "consistency-mart": {
        "make": "Consistency",
        "set": {"base": "mart"},
        "summary": "consistency between two augmentations, on top of MART (Tack et al. 2022)",
        "paper": "Consistency Regularization for Adversarial Robustness",
        "arxiv": "2103.04623",
        "year": 2022,
        "claim": "CIFAR-10, PreAct-ResNet-18: 47.0 % under AutoAttack (MART 41.9)",
        "cost": 2.36,
        "cautions": [
            "costs two of MART: a fair control has the same augmentation, twice the epochs and twice the batch_size, "
            "and method.beta=6, which mart by itself does not have",
        ],
        "recipe": {"augment.crop": 1, "inner.init": "gauss"},
    },
}


@dataclass(frozen=True, kw_only=True)
class Consistency(Method):
    """Consistency between two augmentations.

    `lam`: lambda, the weight of the JS. `tau`: its temperature. `base`: adversarial training ("at"), TRADES or MART.
    `beta`: weight of the KL in the base TRADES or MART.
    """

    views: ClassVar[int] = 2

    lam: NotNegative = 1.0
    tau: Positive = 0.5
    base: Literal["at", "trades", "mart"] = "at"
    beta: NotNegative = 6.0

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        if self.base == "trades":
            check_kl_start(recipe)
        augment = recipe.augment
        if not (augment.crop or augment.flip or augment.cutout or augment.policy != "none"):
            raise UserError(
                f"{recipe.method.name} compares two augmentations, but the recipe has none: "
                "set augment.crop, augment.flip, augment.cutout or augment.policy"
            )

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        return kl_objective(nets.f, x) if self.base == "trades" else super().inner(nets, x, y)

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        if self.base == "at":
            adversarial = nets.f(x_adv)
            terms = {"ce": nets.ce(adversarial, y)}
        else:
            clean, adversarial = nets.f(x), nets.f(x_adv)
            if self.base == "trades":
                terms = {"ce": nets.ce(clean, y), "kl": self.beta * kl(clean, adversarial).mean()}
            else:
                terms = {"ce": nets.ce(adversarial, y), "margin": boosted_margin(adversarial, y).mean()}
                terms["kl"] = self.beta * weighted_kl(clean, adversarial, y).mean()
        if self.lam:
            first, second = adversarial.chunk(2)
            terms["js"] = self.lam * js(first, second, self.tau).mean()
        return terms
