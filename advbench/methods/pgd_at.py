"""Adversarial training by PGD: Madry et al. 2018, arXiv:1706.06083, equation 2.1.

min_f E[ max_{x' in B(x, eps)} CE(f(x'), y) ]

The inner attack (10 steps of eps / 4 from a uniform start, running BatchNorm statistics) is the recipe's `inner`,
with the settings of Pang et al. 2021 (arXiv:2010.00467).

Presets, all for CIFAR-10: `paper`, the released training of a wide ResNet (80,000 updates, which are 205 epochs; biases
and BatchNorm do not decay there); `rice`, PreAct-ResNet-18 of Rice et al. 2020 (arXiv:2002.11569); `bag-of-tricks`,
WRN-34-10 of Pang et al. The last two deploy the best epoch on 1,000 held-out images. In the first two the released
attacks also update BatchNorm's running statistics; here they never do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from advbench.methods.base import Method

ENTRIES: dict[str, dict[str, Any]] = {
    "pgd-at": {
        "make": "PGDAT",
        "summary": "adversarial training on PGD examples (Madry et al. 2018)",
        "paper": "Towards Deep Learning Models Resistant to Adversarial Attacks",
        "arxiv": "1706.06083",
        "year": 2018,
        "claim": "CIFAR-10, ResNet-18, Linf 8/255: about 50.5 % under AutoAttack with weight averaging",
        "cost": 1.0,
        "cautions": ["robust overfitting: the robust accuracy of the last epoch is up to 6 points below the best"],
        "presets": {
            "paper": {
                "epochs": 205,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "inner.steps": 10,
                "inner.rel_step": 0.25,
                "inner.init": "uniform",
                "inner.bn_mode": "train",
                "inner.warmup": 0.0,
                "optim.lr": 0.1,
                "optim.weight_decay": 2e-4,
                "schedule.name": "piecewise",
                "schedule.milestones": [0.5, 0.75],
                "schedule.factor": 0.1,
                "average.name": "none",
                "validation.fraction": 0.0,
                "validation.select": "last",
            },
            "rice": {
                "epochs": 200,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "inner.steps": 10,
                "inner.rel_step": 0.25,
                "inner.init": "uniform",
                "inner.bn_mode": "train",
                "inner.warmup": 0.0,
                "optim.lr": 0.1,
                "optim.weight_decay": 5e-4,
                "schedule.name": "piecewise",
                "schedule.milestones": [0.5, 0.75],
                "schedule.factor": 0.1,
                "average.name": "none",
                "validation.fraction": 0.02,
                "validation.n": 1000,
                "validation.steps": 10,
                "validation.select": "robust",
            },
            "bag-of-tricks": {
                "epochs": 110,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "inner.steps": 10,
                "inner.rel_step": 0.25,
                "inner.init": "uniform",
                "inner.bn_mode": "eval",
                "inner.warmup": 0.0,
                "optim.lr": 0.1,
                "optim.weight_decay": 5e-4,
                "schedule.name": "piecewise",
                "schedule.milestones": [0.9090909091, 0.9545454545],  # after 100 and 105 of 110 epochs
                "schedule.factor": 0.1,
                "average.name": "none",
                "validation.fraction": 0.02,
                "validation.n": 1000,
                "validation.steps": 10,
                "validation.select": "robust",
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class PGDAT(Method):
    """The base class as it is: min_f E[max_{x'} CE(f(x'), y)]."""
