"""The base classes of the zoo's networks: from images in [0, 1] to logits, with features and head separate."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advbench.errors import UserError, unknown
from advbench.models import ImageSize, architectures, sides

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}

# Mean and standard deviation by channel, or one for all channels, on the [0, 1] scale.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3053,), (0.3760,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
}


class Model(nn.Module):
    """Base class: `forward(x) = head(features(x))` for x (B, in_channels, H, W) in [0, 1].

    - `num_classes`: K, the number of logits.
    - `in_channels`: C of an image.
    - `image_size`: H where H = W, else (H, W).
    - `activation`: one of relu, softplus, silu and identity, which makes a net without max pooling linear.
    - `normalize`: the normalisation, a part of the network: none (the default in robustness work), a name of STATISTICS
      (digits, cifar10, imagenet, ...), or [means, standard deviations].

    The buffers `mean` and `std` (1, C, 1, 1) are settings, not weights: they are not in the state dict, so states saved
    elsewhere load.
    """

    arch: str
    settings: dict[str, Any]
    wrappers: list[dict[str, Any]]
    num_classes: int
    in_channels: int
    image_size: ImageSize
    feature_dim: int
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: ImageSize,
        activation: str = "relu",
        normalize: str | Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        height, width = sides(image_size)
        check_positive(num_classes=num_classes, in_channels=in_channels, image_size=min(height, width))
        if num_classes < 2:
            raise UserError(f"num_classes is {num_classes}: a classifier has at least 2")
        if activation not in ACTIVATIONS:
            raise unknown("activation", str(activation), ACTIVATIONS)
        self.arch, self.settings, self.wrappers = type(self).__name__, {}, []
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.act = ACTIVATIONS[activation]()
        mean, std = statistics(normalize, in_channels)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self._normalizes = normalize is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.in_channels, *sides(self.image_size))

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std, or x itself without normalisation."""
        return (x - self.mean) / self.std if self._normalizes else x

    def features(self, x: Tensor) -> Tensor:
        """The outputs of the penultimate layer (B, feature_dim) for images x in [0, 1]."""
        return self.maps_and_features(x)[1]

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """In one pass: local features (B, C, H, W), and `features(x)`.

        The local features are the outputs of the last stage but one in residual nets, and of the last convolution,
        before its pooling, in plain nets. Raises UserError if the architecture has no such maps.
        """
        with_maps = [name for name, entry in architectures().items() if entry.about.get("maps")]
        raise UserError(f"{self.arch} has no feature maps: choose from {', '.join(with_maps)}")

    def feature_maps(self, x: Tensor) -> Tensor:
        """The local features (B, C, H, W) of `maps_and_features`."""
        return self.maps_and_features(x)[0]

    @property
    def has_maps(self) -> bool:
        """Whether the architecture has `maps_and_features` and `feature_maps`."""
        return type(self).maps_and_features is not Model.maps_and_features

    @property
    def has_features(self) -> bool:
        """Whether the architecture has `features` and `features_and_logits`."""
        return True

    @property
    def has_head(self) -> bool:
        """Whether the architecture has `head`."""
        return True

    def head(self, z: Tensor) -> Tensor:
        """Logits (B, num_classes) of features z (B, feature_dim)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images x in [0, 1]."""
        return self.head(self.features(x))

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """In one pass: `features(x)` (B, feature_dim), and the logits (B, num_classes)."""
        z = self.features(x)
        return z, self.head(z)


class Wrapper(Model):
    """Base class of networks around a copy of another network, `self.net`, that change its inference.

    Features and head are the inner net's unless overridden. Settings that affect the output are buffers, so that the
    hash of the weights differs between two settings.
    """

    net: Any  # an nn.Module. Any, since the inner net need not be a Model

    def __init__(self, net: nn.Module) -> None:
        nn.Module.__init__(self)
        self.net = copy.deepcopy(net)
        self.arch = getattr(net, "arch", type(net).__name__)
        self.settings = dict(getattr(net, "settings", {}))
        self.wrappers = []
        for name in ("num_classes", "in_channels", "image_size", "feature_dim"):
            if hasattr(net, name):
                setattr(self, name, getattr(net, name))

    def features(self, x: Tensor) -> Tensor:
        return self.net.features(x)  # type: ignore[no-any-return]

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.maps_and_features(x)  # type: ignore[no-any-return]

    @property
    def has_maps(self) -> bool:
        return bool(getattr(self.net, "has_maps", False))

    @property
    def has_features(self) -> bool:
        return bool(getattr(self.net, "has_features", False))

    @property
    def has_head(self) -> bool:
        return bool(getattr(self.net, "has_head", False))

    def head(self, z: Tensor) -> Tensor:
        return self.net.head(z)  # type: ignore[no-any-return]


@contextmanager
def straight_through(net: nn.Module, on: bool = True) -> Iterator[int]:
    """Let gradients pass the non-differentiable layers of `net` as if these were the identity (BPDA).

    Such layers have a bool attribute `straight_through`; their outputs stay the same. Yields the number of these
    layers, and restores each attribute at the end.
    """
    layers = [layer for layer in net.modules() if isinstance(getattr(layer, "straight_through", None), bool)]
    before = [layer.straight_through for layer in layers]
    try:
        for layer in layers:
            setattr(layer, "straight_through", on)  # noqa: B010
        yield len(layers)
    finally:
        for layer, value in zip(layers, before, strict=True):
            setattr(layer, "straight_through", value)  # noqa: B010


def layers_of(net: nn.Module) -> list[str]:
    """The names of the modules of `net` that have outputs, unlike a list or a dict of modules."""
    found = net.named_modules(remove_duplicate=False)
    return [name for name, layer in found if name and type(layer).forward is not nn.Module.forward]


def check_positive(**values: int) -> None:
    """Raise UserError for the first of `values` that is not a whole number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} is {value!r}: write a whole number above 0")


def check_size(arch: str, image_size: ImageSize, smallest: int) -> None:
    """Raise UserError if a side of the images is below `smallest`, too small for the pooling of `arch`."""
    height, width = sides(image_size)
    if min(height, width) < smallest:
        raise UserError(f"{arch} needs images of at least {smallest}x{smallest}, not {height}x{width}")


def check_dropout(dropout: float) -> None:
    """Raise UserError unless 0 <= dropout < 1."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"dropout is {dropout!r}: write a number from 0 to below 1")


def statistics(normalize: str | Sequence[Sequence[float]] | None, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation (1, C, 1, 1) of the setting `normalize`. Raises UserError."""
    if normalize is None:
        return torch.zeros(1, channels, 1, 1), torch.ones(1, channels, 1, 1)
    if isinstance(normalize, str):
        if normalize not in STATISTICS:
            raise unknown("normalize", normalize, STATISTICS)
        normalize = STATISTICS[normalize]
    try:
        given = [torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in normalize]
        mean, std = (values.expand(1, channels, 1, 1).clone() for values in given)
    except Exception as error:  # torch refuses numbers and shapes with many kinds of error
        raise UserError(
            f"normalize is {normalize!r}: for {channels} channels write [[{channels} means], [{channels} deviations]] "
            f"(--mean and --std), one number each, or one of {', '.join(STATISTICS)}"
        ) from error
    means, deviations = (torch.tensor(values, device="cpu") for values in normalize)  # the network may be on meta
    if not bool(means.isfinite().all()):
        raise UserError(f"normalize has the means {means.flatten().tolist()}: they must be finite")
    if not bool((deviations.isfinite() & (deviations > 0)).all()):
        found = deviations.flatten().tolist()
        raise UserError(f"normalize has the deviations {found}: they must be above 0 and finite")
    return mean, std
