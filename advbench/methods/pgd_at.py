"""Adversarial training by PGD: Madry et al. 2018, arXiv:1706.06083, equation 2.1.

min_f E[ max_{x' in B(x, eps)} CE(f(x'), y) ]

The inner attack (10 steps of eps / 4 from a uniform start, running BatchNorm statistics) is the recipe's `inner`,
with the settings of Pang et al. 2021 (arXiv:2010.00467).
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
    },
}


@dataclass(frozen=True, kw_only=True)
class PGDAT(Method):
    """The base class as it is: min_f E[max_{x'} CE(f(x'), y)]."""
