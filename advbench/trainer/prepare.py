"""What a session is built from: the network, the images and the precision of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from advbench.data import load
from advbench.data.dataset import Dataset, hold_out, split_validation
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
    """The training images, the held-out images that are scored (or None), both on the device, and `split`'s sha256."""
    train, held_out, sha256 = split(recipe)
    if held_out is not None:
        if len(held_out) > recipe.validation.n:  # drawn, since images may be sorted by their labels
            _, held_out = hold_out(held_out, recipe.validation.n, recipe.validation.seed)
        held_out = held_out.to(device)
    return train.to(device), held_out, sha256


def split(recipe: Recipe) -> tuple[Dataset, Dataset | None, str]:
    """The training images, all held-out images (or None) and the sha256 of the images that both were taken from.

    Raises UserError if `train_n` or `validation.held_out` is too large, or if a part would be empty.
    """
    source, n, wanted = load(recipe.dataset, "train"), recipe.train_n, recipe.validation
    if n > len(source):
        raise UserError(f"train_n {n} is more than the {len(source)} training images of {source.name}")
    if wanted.held_out is not None:
        most = len(source) - max(n, 1)
        if wanted.held_out > most:
            raise UserError(
                f"validation.held_out is {wanted.held_out}: of the {len(source)} training images of {source.name}, "
                f"train_n={n} leaves {most} to hold out"
            )
    elif n:
        source = source.subset(range(n))
    source = replace(source, notes=(*source.notes, *_absent(source, n)))
    sha256 = source.images_sha256
    if wanted.held_out is not None:
        train, held_out = hold_out(source.subset(range(n, len(source))), wanted.held_out, wanted.seed)
        return source.subset(range(n)) if n else train, held_out, sha256
    if not wanted.fraction:
        return source, None, sha256
    return *split_validation(source, wanted.fraction, wanted.seed), sha256


def _absent(source: Dataset, n: int) -> list[str]:
    """A note for the user where not all classes occur among the first `n` images of `source`, or among all for 0."""
    present, classes = len(source.labels[: n or None].unique()), source.num_classes
    if present == classes:
        return []
    if source.num_classes_known:
        where = f"among the first {n} images, which train_n={n} takes," if n else "among the images"
        return [f"only {present} of the {classes} classes occur {where} to train on"]
    return [
        f"the labels run from 0 to {classes - 1}, but only {present} of them occur: {classes} classes are trained "
        "(class_map gives labels other numbers, num_classes says how many there are)"
    ]


def precision(recipe: Recipe, device: torch.device) -> tuple[Callable[[], AbstractContextManager[Any]], str]:
    """A function that makes autocast contexts, and the name of their precision: "fp32" or "bf16"."""
    name = recipe.precision
    if name == "auto":
        name = "bf16" if device.type == "cuda" and has_bf16(device) else "fp32"
    if name == "fp32":
        return nullcontext, name
    return partial(torch.autocast, device.type, dtype=torch.bfloat16), name
