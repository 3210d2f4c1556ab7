"""Fast adversarial training, FGSM-RS: Wong, Rice and Kolter 2020, arXiv:2001.03994, algorithm 3.

min_f E[CE(f(x'), y)],  x' = P(x + d + alpha sign grad CE(f(x + d), y)),  d ~ U(-eps, eps),  alpha = 1.25 eps

P projects to the ball and to [0, 1]. This is PGD with one step, as set by the recipe's `inner`. (The released code
takes the gradient with the batch's BatchNorm statistics: `inner.bn_mode=train`.) The preset `paper` is the released
training of PreAct-ResNet-18 on CIFAR-10, without its early stop, which is off by default there too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from advbench.methods.base import Method

ENTRIES: dict[str, dict[str, Any]] = {
    "fast-at": {
        "make": "FastAT",
        "summary": "adversarial training on one FGSM step from a random start (Wong et al. 2020)",
        "paper": "Fast is better than free: Revisiting adversarial training",
        "arxiv": "2001.03994",
        "year": 2020,
        "claim": "the robustness of PGD training at a sixth of its cost: CIFAR-10 46 % under PGD-50 in 15 epochs",
        "cost": 0.18,
        "cautions": ["catastrophic overfitting: the PGD accuracy of a long run can fall to 0 within an epoch"],
        "recipe": {"inner.steps": 1, "inner.rel_step": 1.25},
        "presets": {
            "paper": {
                "epochs": 15,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "inner.steps": 1,
                "inner.rel_step": 1.25,
                "inner.init": "uniform",
                "inner.bn_mode": "train",
                "inner.warmup": 0.0,
                "optim.lr": 0.2,
                "optim.weight_decay": 5e-4,
                "schedule.name": "onecycle",
                "schedule.peak": 0.5,
                "average.name": "none",
                "validation.fraction": 0.0,
                "validation.select": "last",
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class FastAT(Method):
    """The base class as it is: the recipe sets an inner attack of one step."""
