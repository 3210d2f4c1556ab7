"""What a session is built from: the network, the images and the precision of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from advbench.data import load
from advbench.data.dataset import Dataset, split_validation
from advbench.engine.kernels import has_bf16
from advbench.errors import UserError
from advbench.models import build, parse_wrapper, wrap, wrappers
from advbench.models.base import Model
from advbench.recipe import Recipe


def network(recipe: Recipe, data: Dataset, seed: int, arch: str | None = None) -> Model:
    """A network of the recipe's architecture for the images of `data`, in the recipe's wrappers. Raises UserError.

    With `arch` one of that architecture, of which the recipe says the normalisation alone.
    """
    channels, height, width = data.shape
    settings = {name: value for name, value in recipe.model.settings.items() if arch is None or name == "normalize"}
    outer = {name: value for name, value in settings.items() if name in wrappers()}
    own = {name: value for name, value in settings.items() if name not in outer}
    for name in ("num_classes", "in_channels", "image_size", "seed"):
        if name in own:
            raise UserError(f"model.{name} follows from the dataset and the seed: it cannot be set")
    net = build(
        arch or recipe.model.arch,
        num_classes=data.num_classes,
        in_channels=channels,
        image_size=height if height == width else (height, width),
        seed=seed,
        **own,  # type: ignore[arg-type]
    )
    for name, value in outer.items():
        net = wrap(net, name, seed=seed, **(value if isinstance(value, dict) else parse_wrapper(name, str(value))))
    return net


def images(recipe: Recipe, device: torch.device) -> tuple[Dataset, Dataset | None, str]:
    """The training images, the held-out images (or None) and the sha256 of both together, before the split.

    The images are on the device. Raises UserError if `train_n` is too large or the split leaves a part empty.
    """
    train, held_out = load(recipe.dataset, "train"), None
    if recipe.train_n:
        if recipe.train_n > len(train):
            raise UserError(f"train_n {recipe.train_n} is more than the {len(train)} training images of {train.name}")
        train = train.subset(range(recipe.train_n))
    if not train.num_classes_known and (present := len(train.labels.unique())) < train.num_classes:
        note = (
            f"the labels run from 0 to {train.num_classes - 1}, but only {present} of them occur: {train.num_classes} "
            "classes are trained (class_map gives labels other numbers, num_classes says how many there are)"
        )
        train = replace(train, notes=(*train.notes, note))
    sha256 = train.images_sha256
    if recipe.validation.fraction:
        train, held_out = split_validation(train, recipe.validation.fraction, recipe.validation.seed)
        held_out = held_out.subset(range(min(recipe.validation.n, len(held_out)))).to(device)
    return train.to(device), held_out, sha256


def precision(recipe: Recipe, device: torch.device) -> tuple[Callable[[], AbstractContextManager[Any]], str]:
    """A function that makes autocast contexts, and the name of their precision: "fp32" or "bf16"."""
    name = recipe.precision
    if name == "auto":
        name = "bf16" if device.type == "cuda" and has_bf16(device) else "fp32"
    if name == "fp32":
        return nullcontext, name
    return partial(torch.autocast, device.type, dtype=torch.bfloat16), name
