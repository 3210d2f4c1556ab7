"""The LeNet5 of advertorch, on whose trained MNIST weights the attack literature reports numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from advbench.models.base import Model, check_size

ENTRIES: dict[str, dict[str, Any]] = {
    "lenet5": {
        "make": "LeNet5",
        "summary": "2 padded convolutions (32 64) with pooling, and 200 units: advertorch's MNIST net",
        "maps": True,
    },
}


class LeNet5(Model):
    """Two 3x3 convolutions, each with 2x2 pooling, and 200 hidden units. advertorch's state dicts load unchanged."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        check_size("lenet5", self.image_size, 4)
        self.conv1 = nn.Conv2d(self.in_channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        _, height, width = self.shape
        self.linear1 = nn.Linear(64 * (height // 4) * (width // 4), 200)
        self.linear2 = nn.Linear(200, self.num_classes)
        self.feature_dim = 200

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = F.max_pool2d(self.act(self.conv1(self.normalise(x))), 2)
        maps = self.act(self.conv2(first))
        return maps, self.act(self.linear1(F.max_pool2d(maps, 2).flatten(1)))

    def head(self, z: Tensor) -> Tensor:
        return self.linear2(z)  # type: ignore[no-any-return]
