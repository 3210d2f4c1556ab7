"""Features pulled to the centre of another class: an adaptive attack on what shapes the feature space.

x' minimises ||phi(x') - c_t||_2^2 in the ball by projected gradient descent, phi the penultimate layer and c_t the mean
feature of the clean images of class t (Sabour et al. 2016, arXiv:1511.05122, with a centre in place of a guide image).
It goes where losses on the logits see nothing: nets trained with a centre loss, say, whose logits saturate. The
centres are those of the images that are evaluated, so that a verdict is one of the whole set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench.attacks.engine import Problem, Reads
from advbench.attacks.losses import likeliest
from advbench.attacks.pgd import PGD

ENTRIES: dict[str, dict[str, Any]] = {
    "feature-pgd": {
        "make": "FeaturePGD",
        "set": {"name": "feature-pgd"},
        "members": ["pgd"],
        "summary": "features pulled to the mean ones of 3 wrong classes, 40 steps (after Sabour et al. 2016)",
    },
}


@dataclass(frozen=True, kw_only=True)
class FeaturePGD(PGD):
    """As PGD, but that `loss` says nothing: towards the centres of the `n_targets` likeliest wrong classes, or of
    `target`, whose own images are drawn to their likeliest wrong class."""

    reads: ClassVar[Reads] = "features"

    steps: int = 40
    rel_step: float = 0.1
    n_targets: int = 3

    def targets(self, logits: Tensor, y: Tensor) -> Tensor:
        aimed = super().targets(logits, y)
        return torch.where(aimed < 0, likeliest(logits, y, 1), aimed)

    def objective(self, p: Problem, read: Tensor) -> Tensor:
        return -(read - p.reference).square().sum(1)
