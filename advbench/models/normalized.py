"""Normalisation in front of a network, so that it takes images in [0, 1], and the ways to write one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advbench.errors import UserError, shortened
from advbench.models.base import STATISTICS

Numbers = tuple[float, ...]
Written = str | float | Sequence[float] | None
# What others read of a network beside its outputs.
_ABOUT = ("arch", "settings", "wrappers", "num_classes", "in_channels", "image_size")


class Normalized(nn.Module):
    """`net` for images in [0, 1], which are first normalised by `mean` and `std`, a number for each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))
        for name in _ABOUT:
            if hasattr(net, name):
                setattr(self, name, getattr(net, name))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits


def normalises(net: nn.Module) -> bool:
    """Whether `net` is known to normalise its images: by a `Normalized`, or as a network of the zoo."""
    return any(isinstance(part, Normalized) or getattr(part, "_normalizes", False) is True for part in net.modules())


def own_normalisation(net: nn.Module) -> str:
    """The kind of a layer of `net` that looks as if it normalised images, such as Normalize; empty if there is none."""
    kinds = (type(part) for part in net.modules() if hasattr(part, "mean") and hasattr(part, "std"))
    return next((kind.__name__ for kind in kinds if kind.__name__.lower().startswith("normali")), "")


def parse_statistics(mean: Written, std: Written) -> tuple[Numbers, Numbers] | None:
    """Means and standard deviations on the [0, 1] scale, one number for all channels or one each; None without both.

    Each is a name of STATISTICS, a comma list such as "0.5,0.5,0.5", a number or several. One name gives both. Raises
    UserError for other texts, a mean that is not finite or outside of [-1, 1], a deviation that is not above 0, and one
    without the other.
    """
    if mean is None and std is None:
        return None
    means = _numbers("--mean", mean if mean is not None else _name(std), 0)
    deviations = _numbers("--std", std if std is not None else _name(mean), 1)
    if means is None or deviations is None:
        given, missing = ("--std", "--mean") if means is None else ("--mean", "--std")
        raise UserError(
            f"{given} without {missing}: give both, or one of the names {', '.join(STATISTICS)}, which has both"
        )
    if max(map(abs, means)) > 1:
        raise UserError(f"--mean {shortened(mean)}: images are in [0, 1], so a mean is too: 127 of 255 is 0.498")
    if min(deviations) <= 0:
        raise UserError(f"--std {shortened(std)}: standard deviations are above 0")
    return means, deviations


def by_channel(flag: str, numbers: Numbers, channels: int) -> Numbers:
    """A number for each of `channels`. Raises UserError for another count than one or `channels`."""
    if len(numbers) not in (1, channels):
        have = f"{channels} channel{'s' if channels > 1 else ''}"
        raise UserError(f"{flag} has {len(numbers)} numbers, but the images have {have}: give one, or one a channel")
    return numbers * channels if len(numbers) == 1 else numbers


def _name(written: Written) -> Written:
    """`written` if it is a name, which gives the other flag too."""
    return written if isinstance(written, str) and written.strip() in STATISTICS else None


def _numbers(flag: str, written: Written, place: int) -> Numbers | None:
    if written is None:
        return None
    if isinstance(written, str) and written.strip() in STATISTICS:
        return STATISTICS[written.strip()][place]
    parts: Any = written.split(",") if isinstance(written, str) else written
    try:
        found = tuple(float(part) for part in ([parts] if not np.ndim(parts) else parts))
    except (TypeError, ValueError):
        found = ()
    if not found or not all(math.isfinite(number) for number in found):
        raise UserError(
            f"{flag} {shortened(written)}: write a number, one for each channel such as 0.5,0.5,0.5, or one of the "
            f"names {', '.join(STATISTICS)}"
        )
    return found
