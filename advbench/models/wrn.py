"""Wide residual networks."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from advbench.errors import UserError
from advbench.models.base import Model, check_dropout, check_positive

ENTRIES: dict[str, dict[str, Any]] = {
    "wrn-28-10": {
        "make": "WideResNet",
        "set": {"depth": 28, "widen": 10},
        "summary": "wide ResNet, 28 layers, 10 times as wide",
        "maps": True,
    },
    "wrn-34-10": {
        "make": "WideResNet",
        "set": {"depth": 34, "widen": 10},
        "summary": "wide ResNet, 34 layers, 10 times as wide",
        "maps": True,
    },
}


class _Block(nn.Module):
    """x' + conv2(drop(relu(bn2(conv1 h)))) with h = relu(bn1 x); x' is x, or h projected where shapes change."""

    def __init__(self, inputs: int, planes: int, stride: int, dropout: float, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.drop = nn.Dropout(dropout)
        self.convShortcut: nn.Module | None = None
        if inputs != planes:
            self.convShortcut = nn.Conv2d(inputs, planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(h)
        return self.conv2(self.drop(self.act(self.bn2(self.conv1(h))))) + shortcut  # type: ignore[no-any-return]


class WideResNet(Model):
    """Wide ResNet of Zagoruyko and Komodakis 2016 (arXiv:1605.07146), with the keys of TRADES' code.

    `depth`: number of layers: 10, 16, 22, ... `widen`: the stages have 16, 32 and 64 times this many channels.
    `dropout`: in each block.

    Three stages of (depth - 4) / 6 blocks. Raises UserError for another depth.
    """

    block1: nn.Module
    block2: nn.Module
    block3: nn.Module

    def __init__(self, *, depth: int, widen: int, dropout: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        check_positive(depth=depth, widen=widen)
        check_dropout(dropout)
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"depth is {depth}: a wide ResNet has 10, 16, 22, 28, 34 ... layers")
        self.conv1 = nn.Conv2d(self.in_channels, 16, 3, padding=1, bias=False)
        inputs = 16
        for stage in range(3):
            planes = 16 * widen * 2**stage
            layer = nn.Sequential()
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                layer.append(_Block(inputs, planes, stride, dropout, self.act))
                inputs = planes
            self.add_module(f"block{stage + 1}", nn.Sequential(OrderedDict(layer=layer)))
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, self.num_classes)
        self.feature_dim = inputs
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions' weights anew, and set the last layer's bias to 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.block2(self.block1(self.conv1(self.normalise(x))))
        return maps, self.act(self.bn1(self.block3(maps))).mean((2, 3))

    def head(self, z: Tensor) -> Tensor:
        return self.fc(z)  # type: ignore[no-any-return]
