"""Tensors and arrays in memory as a Dataset."""

from __future__ import annotations

from typing import Any

import torch

from advbench.data.dataset import Dataset
from advbench.errors import UserError


def from_tensors(x: Any, y: Any, *, num_classes: int | None = None, name: str = "tensors") -> Dataset:
    """A test split of images x (N, C, H, W) and labels y (N,): tensors, or anything that torch.as_tensor takes.

    x is uint8, or floats in [0, 1] that are multiples of 1/255, as images are; `num_classes` is by default one more
    than the largest label. Raises UserError for anything else.
    """
    images, labels = torch.as_tensor(x).detach().cpu(), torch.as_tensor(y).detach().cpu()
    if images.dim() != 4 or len(images) == 0:
        raise UserError(f"{name}: images must be (N, C, H, W) with N at least 1, not {tuple(images.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (len(images),):
        raise UserError(f"{name}: labels must be whole numbers, one for each of the {len(images)} images")
    if images.is_floating_point():
        steps = images.double() * 255
        rounded = steps.round()
        if not bool(((steps - rounded).abs() <= 0.1).all() & (rounded >= 0).all() & (rounded <= 255).all()):
            raise UserError(f"{name}: images must be uint8, or floats in [0, 1] that are multiples of 1/255")
        images = rounded.to(torch.uint8)
    elif images.dtype != torch.uint8:
        raise UserError(f"{name}: images must be uint8, or floats in [0, 1], not {images.dtype}")
    return Dataset.whole(
        images.contiguous(),
        labels.long(),
        name=name,
        split="test",
        num_classes=num_classes or int(labels.max()) + 1,
    )
