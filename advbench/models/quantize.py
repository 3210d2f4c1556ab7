"""Quantised outputs of one layer, at test time (Sridhar et al. 2022, arXiv:2206.06496).

The gradient is zero wherever it exists, so plain gradient attacks fail. Evaluate such a network with
`straight_through` on (Athalye et al. 2018, BPDA, arXiv:1802.00420).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from advbench.errors import UserError, unknown
from advbench.models.base import Wrapper, check_positive, layers_of

ENTRIES: dict[str, dict[str, Any]] = {
    "quantize": {
        "make": "Quantize",
        "kind": "wrapper",
        "form": "LAYER:LEVELS",
        "summary": "outputs of one layer rounded down to multiples of 1/levels",
    },
}


class Quantizer(nn.Module):
    """q(h) = floor(levels h) / levels, elementwise. With `straight_through` its gradient is that of the identity."""

    levels: Tensor
    straight_through: bool

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(float(levels)))
        self.straight_through = False

    def forward(self, h: Tensor) -> Tensor:
        if not isinstance(h, Tensor):
            raise UserError(f"a layer that gives a {type(h).__name__} is not quantised: name one that gives a tensor")
        q = torch.floor(self.levels * h) / self.levels
        return q.detach() + (h - h.detach()) if self.straight_through else q


class Quantize(Wrapper):
    """A copy of `net` in which one layer has quantised outputs.

    `layer`: its name, as in `net.named_modules()`. `levels`: outputs are rounded down to multiples of 1 / levels.
    """

    def __init__(self, *, net: nn.Module, layer: str, levels: int) -> None:
        super().__init__(net)
        check_positive(levels=levels)
        if layer not in (names := layers_of(net)):
            raise unknown("layer", str(layer), names)
        parent_name, _, child = layer.rpartition(".")
        parent = self.net.get_submodule(parent_name)
        inner = getattr(parent, child)
        setattr(parent, child, nn.Sequential(OrderedDict(layer=inner, quantizer=Quantizer(levels))))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.features_and_logits(x)  # type: ignore[no-any-return]
