"""A multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn

from advbench.models.base import Model, check_positive

ENTRIES: dict[str, dict[str, Any]] = {
    "mlp": {"make": "MLP", "summary": "2 hidden layers of 256 (settings depth, width)"},
}


class MLP(Model):
    """A fully connected network.

    `width`: units of a hidden layer. `depth`: number of hidden layers.
    """

    def __init__(self, *, width: int = 256, depth: int = 2, **common: Any) -> None:
        super().__init__(**common)
        check_positive(width=width, depth=depth)
        sizes = [prod(self.shape), *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.linear = nn.Linear(width, self.num_classes)
        self.feature_dim = width

    def features(self, x: Tensor) -> Tensor:
        z = self.normalise(x).flatten(1)
        for layer in self.hidden:
            z = self.act(layer(z))
        return z

    def head(self, z: Tensor) -> Tensor:
        return self.linear(z)  # type: ignore[no-any-return]
