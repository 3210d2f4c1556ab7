"""A linear classifier on the pixels, whose distances to the decision boundary have closed forms."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from advbench.models.base import Model

ENTRIES: dict[str, dict[str, Any]] = {
    "linear": {"make": "Linear", "summary": "logits = W x + b: closed-form robustness"},
}


class Linear(Model):
    """logits = W x + b. The features are the (normalised) pixels themselves.

    `bias`: whether there is a b.
    """

    def __init__(self, *, bias: bool = True, **common: Any) -> None:
        super().__init__(**common)
        self.feature_dim = prod(self.shape)
        self.linear = nn.Linear(self.feature_dim, self.num_classes, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        return self.normalise(x).flatten(1)

    def head(self, z: Tensor) -> Tensor:
        return self.linear(z)  # type: ignore[no-any-return]
