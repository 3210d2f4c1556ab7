"""Standard training: min_f E[CE(f(x), y)], on clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from advbench.methods.base import Method, Nets, Objective

ENTRIES: dict[str, dict[str, Any]] = {
    "standard": {
        "make": "Standard",
        "summary": "cross-entropy on clean images: the control without defence",
        "paper": "empirical risk minimisation",
        "arxiv": None,
        "year": None,
        "claim": "the best clean accuracy, and no robustness",
        "cost": 0.09,
        "cautions": ["robust accuracy at the usual eps is zero: more under a weak attack means masked gradients"],
        "recipe": {"validation.select": "clean"},
    },
}


@dataclass(frozen=True, kw_only=True)
class Standard(Method):
    """min_f E[CE(f(x), y)]."""

    @property
    def attacks(self) -> bool:
        return False

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        return None
