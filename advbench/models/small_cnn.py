"""The two small convolutional nets of the MNIST robustness literature."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from advbench.models.base import Model, check_dropout, check_size

ENTRIES: dict[str, dict[str, Any]] = {
    "small_cnn": {
        "make": "SmallCNN",
        "summary": "4 convolutions (32 32 64 64) and 2 layers of 200, the MNIST net of CW and TRADES",
        "maps": True,
    },
    "small_cnn_16_32_100": {
        "make": "StridedCNN",
        "summary": "2 strided convolutions (16 32) and a layer of 100, the MNIST net of Wong and Kolter",
        "maps": True,
    },
}


class SmallCNN(Model):
    """The net of Carlini and Wagner 2017 (arXiv:1608.04644), with the form and keys of TRADES (arXiv:1901.08573).

    `dropout`: between the two hidden layers; 0.5 in TRADES' code.

    On images with a side below 16 the convolutions are padded, since unpadded ones would leave no pixels.
    """

    def __init__(self, *, dropout: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        check_size("small_cnn", self.image_size, 4)
        check_dropout(dropout)
        _, height, width = self.shape
        pad = 0 if min(height, width) >= 16 else 1
        for _ in range(2):
            height, width = ((side - 4 * (1 - pad)) // 2 for side in (height, width))
        self.feature_extractor = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(self.in_channels, 32, 3, padding=pad),
                relu1=self.act,
                conv2=nn.Conv2d(32, 32, 3, padding=pad),
                relu2=self.act,
                maxpool1=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, 3, padding=pad),
                relu3=self.act,
                conv4=nn.Conv2d(64, 64, 3, padding=pad),
                relu4=self.act,
            )
        )
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(64 * height * width, 200),
                relu1=self.act,
                drop=nn.Dropout(dropout),
                fc2=nn.Linear(200, 200),
                relu2=self.act,
                fc3=nn.Linear(200, self.num_classes),
            )
        )
        self.feature_dim = 200
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of all layers but the last anew.

        He et al. 2015, as in TRADES' code: with PyTorch's default initialisation the signal shrinks from layer to
        layer, and adversarial training stays at chance for many epochs.
        """
        for layer in [*self.feature_extractor, *self.classifier[:-1]]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.feature_extractor(self.normalise(x))
        z = self.pool(maps).flatten(1)
        for layer in list(self.classifier)[:-1]:  # a slice of it would be a new module, which torch.fx cannot trace
            z = layer(z)
        return maps, z

    def head(self, z: Tensor) -> Tensor:
        return self.classifier[-1](z)  # type: ignore[no-any-return]


class StridedCNN(Model):
    """The net of Wong and Kolter 2018 (arXiv:1711.00851): two 4x4 convolutions of stride 2, 100 hidden units."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        check_size("small_cnn_16_32_100", self.image_size, 4)
        self.conv1 = nn.Conv2d(self.in_channels, 16, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        _, height, width = self.shape
        self.linear1 = nn.Linear(32 * (height // 4) * (width // 4), 100)
        self.linear2 = nn.Linear(100, self.num_classes)
        self.feature_dim = 100

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.act(self.conv2(self.act(self.conv1(self.normalise(x)))))
        return maps, self.act(self.linear1(maps.flatten(1)))

    def head(self, z: Tensor) -> Tensor:
        return self.linear2(z)  # type: ignore[no-any-return]
