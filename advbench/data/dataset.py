"""A split of a dataset: images with labels, and the hash that identifies them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from advbench.errors import UserError
from advbench.rng import bits, keys

_SCALES = (16, 255)  # the largest value of digits, and of a byte


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """sha256 (hex) of the shape ("N,C,H,W;" in ASCII), the NCHW values and the labels as little-endian int64.

    Values are bytes if `images` are uint8. If they are float32, "float32;" follows the shape, and values are
    little-endian float32, where -0 is 0.
    """
    shape = ",".join(map(str, images.shape)) + ";"
    if images.is_floating_point():
        shape, images = shape + "float32;", images + 0.0
    pixels = images.cpu().contiguous().numpy()
    digest = hashlib.sha256(shape.encode())
    digest.update(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).data)
    digest.update(labels.cpu().contiguous().numpy().astype("<i8").data)
    return digest.hexdigest()


def check_range(images: Tensor, what: str) -> None:
    """Raise UserError unless all floats in `images` lie in [0, 1]. `what` they are begins the message."""
    low, high = images.min().item(), images.max().item()  # NaN where one is NaN
    if 0 <= low <= high <= 1:
        return
    if math.isnan(low):
        raise UserError(f"{what}: images hold NaN, and must lie in [0, 1]")
    hint = "normalisation is the model's part (--mean, --std)"
    if low >= 0 and high > 2:
        hint = f"divide by {255 if high <= 255 else 65535}, or by what white is in them"
    raise UserError(f"{what}: images are floats from {low:.9g} to {high:.9g}, and must lie in [0, 1]: {hint}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one split, all or some of them.

    `images` (N, C, H, W): uint8, whose values divided by `scale` lie in [0, 1], or float32 in [0, 1], whose `scale` is
    1. `labels` int64 (N,) in [0, num_classes); `indices` int64 (N,), the place of each image in the whole split.
    `num_classes_known`: False where the labels alone say how many classes there are, so that a model may have more.
    `notes`: what the user should know of the data. Raises UserError if these do not fit together.
    """

    images: Tensor
    labels: Tensor
    name: str
    split: str
    num_classes: int
    indices: Tensor
    scale: float = 255.0
    class_names: tuple[str, ...] = ()
    num_classes_known: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype == torch.float32:
            object.__setattr__(self, "scale", 1.0)
        if self.images.dtype not in (torch.uint8, torch.float32) or self.images.dim() != 4:
            raise UserError(
                f"{self.name}: images must be uint8 or float32 (N, C, H, W), "
                f"not {str(self.images.dtype).removeprefix('torch.')} {tuple(self.images.shape)}"
            )
        count = len(self.images)
        for field, values in (("labels", self.labels), ("indices", self.indices)):
            if values.dtype != torch.int64 or values.shape != (count,):
                raise UserError(f"{self.name}: {field} must be int64 ({count},), one for each image")

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        return f"<Dataset {self.name} {self.split}: {len(self.images):,} images {size}, {self.num_classes} classes>"

    @classmethod
    def whole(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        name: str,
        split: str,
        num_classes: int,
        scale: float = 255.0,
        class_names: Sequence[str] = (),
        num_classes_known: bool = True,
    ) -> Dataset:
        """A complete split, with indices from 0.

        Raises UserError for no images, a label outside the classes, and floats outside [0, 1].
        """
        if len(labels) == 0:
            raise UserError(f"{name}: the {split} split has no images")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise UserError(f"{name}: labels run from {low} to {high}, but must lie in 0 to {num_classes - 1}")
        if images.is_floating_point():
            check_range(images, name)
        order = torch.arange(len(labels))
        return cls(images, labels, name, split, num_classes, order, scale, tuple(class_names), num_classes_known)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def levels(self) -> float:
        """The steps of quantisation between 0 and 1. Floats are taken to come from bytes: 255."""
        return 255.0 if self.images.is_floating_point() else self.scale

    @cached_property
    def images_sha256(self) -> str:
        """The hash that identifies these images and labels: the same on every device and from every source.

        It is the `fingerprint` of the stored values. If `scale` is not the usual one for these values (16 or 255), it
        is hashed again with `scale`, since equal values on another scale are other images.
        """
        digest = fingerprint(self.images, self.labels)
        if self.images.is_floating_point():
            return digest
        usual = next(scale for scale in _SCALES if int(self.images.max()) <= scale)
        if self.scale == usual:
            return digest
        return hashlib.sha256(f"{digest} / {float(self.scale)!r}".encode()).hexdigest()

    def subset(self, rows: Tensor | Sequence[int]) -> Dataset:
        """The images at `rows` (positions in this dataset, any order). Raises UserError outside 0 to N-1."""
        chosen = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(outside):
            raise UserError(
                f"{self.name} {self.split} has no image {int(outside[0])}: choose from 0 to {len(self) - 1}"
            )
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], indices=self.indices[chosen])

    def with_classes(self, count: int) -> Dataset:
        """The same data for a model of `count` classes.

        Raises UserError if the data say that there are fewer or more, or have a label that the model lacks.
        """
        if count != self.num_classes and (self.num_classes_known or count < self.num_classes):
            least = "" if self.num_classes_known else "at least "
            raise UserError(f"the model has {count} classes, {self.name} has {least}{self.num_classes}")
        return replace(self, num_classes=count, num_classes_known=True)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on `device`."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            indices=self.indices.to(device),
        )

    def pixels(self, images: Tensor) -> Tensor:
        """Stored values (any shape) as float32 in [0, 1]."""
        if images.is_floating_point():
            return images.clone()  # a model may change its input in place
        # Divided by a tensor: for a plain number CUDA multiplies by its reciprocal, which rounds differently.
        return images.float() / torch.full((), self.scale, device=images.device)

    def batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """x, float32 (B, C, H, W) in [0, 1], and y, int64 (B,), at `rows`, positions in this dataset."""
        return self.pixels(self.images[rows]), self.labels[rows]


def split_validation(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide into (training, validation) by `seed`, the share `fraction` for validation, as `hold_out` does.

    Raises UserError if a part would be empty.
    """
    held = round(fraction * len(dataset))
    if not 0 < held < len(dataset):
        raise UserError(
            f"validation.fraction={fraction:g} of {len(dataset)} images leaves none to hold out, or none to "
            "train on: choose another share between 0 and 1, such as --set validation.fraction=0.2"
        )
    return hold_out(dataset, held, seed)


def hold_out(dataset: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """Divide into (the others, `count` held-out images) by `seed`; each keeps the order and the indices of `dataset`.

    Which images are held out depends only on the seed and their indices.
    """
    drawn = bits(keys(seed, "validation", dataset.indices.cpu()), (1,))[:, 0]
    order = drawn.argsort(stable=True)
    return dataset.subset(order[count:].sort().values), dataset.subset(order[:count].sort().values)
