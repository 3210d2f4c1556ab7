"""Images in folders, one folder for each class: `imagefolder:PATH`, with `@SIZE` or `@HxW` resized."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advbench.data import Progress, pictures
from advbench.data.dataset import Dataset
from advbench.data.folder_checks import held_back
from advbench.data.folders import FIFTH, Place, listing
from advbench.errors import UserError
from advbench.registry import plain_dataset

ENTRIES: dict[str, dict[str, Any]] = {
    "imagefolder": {
        "make": "load",
        "summary": "your images: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png; "
        "PATH@224 resizes, PATH/classes.json says the labels",
        "argument": "PATH",
        "scale": 255.0,
        "reference_eps": {},
    }
}
__all__ = ["held_back", "load"]
_NAMED = 5  # unreadable files, in a message


def load(split: str, path: str, resize: int | None = None, progress: Progress | None = None) -> Dataset:
    """A split of the images under `path`, found as `folders.listing` says and read as `pictures.read` says.

    All images must have one size, unless `resize` is given or `@SIZE` or `@HxW` follows the path: then each is scaled
    to cover that size, and its middle is cropped. Raises UserError for folders that do not fit, naming them, and for
    images that cannot be read, all at once.
    """
    place = Place.parse(path)
    if resize is not None:
        if resize < 1:
            raise UserError(f"resize {resize} must be at least 1")
        place = place._replace(size=(resize, resize))
    root, size, fifth = place
    found = listing(place, split)
    images: list[Tensor] = []
    labels, failed, remarked, first = [], [], Counter[str](), None
    for number, (file, label) in enumerate(found.images, start=1):
        try:
            image, remarks = pictures.read(file, size)
        except UserError as error:
            failed.append(f"{file.relative_to(root)} ({error})")
            continue
        if images and image.shape != images[0].shape:
            suggested = f"imagefolder:{root}@{min(images[0].shape[1:])}{FIFTH if fifth else ''}"
            raise UserError(
                f"imagefolder: in {root}, {first} is {_size(images[0])}, {file.relative_to(root)} {_size(image)} "
                f"(height x width): make them one size, or let {suggested} resize them"
            )
        first = first or file.relative_to(root)
        images.append(image)
        labels.append(label)
        remarked.update(remarks)
        if progress is not None:
            progress(number, len(found.images), "reading images")
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        raise UserError(
            f"imagefolder: cannot read {len(failed)} of {len(found.images)} images of {root}: "
            f"{', '.join(failed[:_NAMED])}{more}"
        )
    side = "" if size is None else f"@{size[0]}" if size[0] == size[1] else f"@{size[0]}x{size[1]}"
    data = Dataset.whole(
        torch.stack(images),
        torch.tensor(labels),
        name=plain_dataset(f"imagefolder:{root}{side}{FIFTH if fifth else ''}"),
        split=split,
        num_classes=len(found.classes),
        class_names=found.classes,
    )
    notes = (*found.notes, *(f"{count} images {what}" for what, count in sorted(remarked.items())))
    return replace(data, num_classes_known=found.closed, notes=notes)


def _size(image: Tensor) -> str:
    return f"{image.shape[1]}x{image.shape[2]}"
