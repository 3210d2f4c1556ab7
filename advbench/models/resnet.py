"""Residual networks for 32x32 images: a 3x3 stem without pooling, and four stages."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from advbench.errors import UserError
from advbench.models.base import Model, check_positive

ENTRIES: dict[str, dict[str, Any]] = {
    "resnet18": {
        "make": "ResNet",
        "set": {"blocks": [2, 2, 2, 2]},
        "summary": "ResNet-18 for 32x32 images (setting width, 64)",
        "maps": True,
    },
    "preact_resnet18": {
        "make": "PreActResNet",
        "set": {"blocks": [2, 2, 2, 2]},
        "summary": "pre-activation ResNet-18 for 32x32 images (setting width, 64)",
        "maps": True,
    },
}


class _Block(nn.Module):
    """relu(x' + bn2(conv2(relu(bn1(conv1 x))))); x' is x, projected where shapes change."""

    def __init__(self, inputs: int, planes: int, stride: int, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(out + self.shortcut(x))  # type: ignore[no-any-return]


class _PreActBlock(nn.Module):
    """x' + conv2(relu(bn2(conv1 h))) with h = relu(bn1 x); x' is x, or h projected where shapes change."""

    def __init__(self, inputs: int, planes: int, stride: int, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(self.act(self.bn2(self.conv1(h)))) + shortcut  # type: ignore[no-any-return]


class _Residual(Model):
    """Base class of both forms: stem `conv1`, stages `layer1`..`layer4`, mean over positions, `linear`.

    `blocks`: their number in each stage. `width`: channels of the first stage, which double in each further one.
    """

    block: type[nn.Module]
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, *, blocks: list[int], width: int = 64, **common: Any) -> None:
        super().__init__(**common)
        check_positive(width=width)
        if not isinstance(blocks, list) or len(blocks) != 4:
            raise UserError(f"blocks is {blocks!r}: write the number of blocks of each of the 4 stages")
        for count in blocks:
            check_positive(blocks=count)
        self.conv1 = nn.Conv2d(self.in_channels, width, 3, padding=1, bias=False)
        inputs = width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            layer = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layer.append(self.block(inputs, planes, stride, self.act))
                inputs = planes
            self.add_module(f"layer{stage + 1}", layer)
        self.feature_dim = inputs
        self.linear = nn.Linear(inputs, self.num_classes)

    def head(self, z: Tensor) -> Tensor:
        return self.linear(z)  # type: ignore[no-any-return]


class ResNet(_Residual):
    """ResNet of He et al. 2016 (arXiv:1512.03385). State-dict keys are those of common CIFAR code and RobustBench."""

    block = _Block

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.bn1 = nn.BatchNorm2d(self.conv1.out_channels)

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.act(self.bn1(self.conv1(self.normalise(x))))
        maps = self.layer3(self.layer2(self.layer1(out)))
        return maps, self.layer4(maps).mean((2, 3))


class PreActResNet(_Residual):
    """Pre-activation ResNet (He et al. 2016, arXiv:1603.05027). BatchNorm `bn` precedes pooling (Rice et al. 2020)."""

    block = _PreActBlock

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.bn = nn.BatchNorm2d(self.feature_dim)

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.layer3(self.layer2(self.layer1(self.conv1(self.normalise(x)))))
        return maps, self.act(self.bn(self.layer4(maps))).mean((2, 3))
