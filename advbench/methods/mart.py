"""MART: Wang et al., ICLR 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples".

min_f E[ BCE(f(x'), y) + beta KL(f(x) || f(x')) (1 - p_y(x)) ],  x' = argmax_{x' in B(x, eps)} CE(f(x'), y)
BCE(f(x'), y) = CE(f(x'), y) - log(1 - max_{k != y} p_k(x'))

From the released code: the constants that avoid log 0 (1.0001 and 1.0000001), the start x + 0.001 N(0, I), and
beta = 5 for ResNet-18 (6 in the paper). The preset `paper` is the released training of ResNet-18 on CIFAR-10 (there at
eps 0.031).

The paper smooths no labels. With label smoothing s only CE(f(x'), y) becomes (1 - s) CE + s mean_k(-log p_k(x')), least
where p_y(x') = 1 - s + s / K and p_k(x') = s / K. The KL draws p(x) to p(x'), so the weight 1 - p_y(x) of an image that
is learned perfectly is about s (1 - 1 / K), which is 0.36 for s = 0.4 and K = 10, in place of 0: misclassified images
(weights up to 1) are hardly preferred. The margin term, which is not smoothed, asks for p_k(x') = 0. So set
label_smoothing=0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from advbench.methods.base import Method, Nets
from advbench.methods.terms import boosted_margin, weighted_kl
from advbench.recipe.fields import NotNegative

ENTRIES: dict[str, dict[str, Any]] = {
    "mart": {
        "make": "MART",
        "summary": "boosted cross-entropy, and a KL with more weight on misclassified images (Wang et al. 2020)",
        "paper": "Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
        "arxiv": None,
        "year": 2020,
        "claim": "CIFAR-10, ResNet-18, 8/255: 47.8 % under AutoAttack; 55 % under PGD-20",
        "cost": 1.18,
        "cautions": [
            "gains under PGD are larger than under AutoAttack",
            "label_smoothing s (0.4 except on digits, MNIST and Fashion-MNIST) keeps the weight 1 - p_y(x) near "
            "s (1 - 1 / K) on learned images, so misclassified ones are hardly preferred: set label_smoothing=0",
        ],
        "recipe": {"inner.init": "gauss", "inner.rel_step": 0.2258},
        "presets": {
            "paper": {
                "epochs": 120,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "method.beta": 5.0,
                "inner.steps": 10,
                "inner.rel_step": 0.2258,
                "inner.init": "gauss",
                "inner.bn_mode": "eval",
                "inner.warmup": 0.0,
                "optim.lr": 0.01,
                "optim.weight_decay": 3.5e-3,
                "schedule.name": "piecewise",
                "schedule.milestones": [0.6166666667, 0.7416666667, 0.825],  # after 74, 89, 99 of 120
                "schedule.factor": 0.1,
                "average.name": "none",
                "validation.fraction": 0.0,
                "validation.select": "last",
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class MART(Method):
    """`beta`: weight of the KL."""

    beta: NotNegative = 5.0

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        clean, adversarial = nets.f(x), nets.f(x_adv)
        return {
            "ce": nets.ce(adversarial, y),
            "margin": boosted_margin(adversarial, y).mean(),
            "kl": self.beta * weighted_kl(clean, adversarial, y).mean(),
        }
