"""Datasets as uint8 tensors: `load("cifar10", "test")`. Each file here with ENTRIES registers its names.

A specification is a name (`mnist`), a name with an argument (`imagefolder:PATH`, `npz:PATH`) or
`package.module:callable`, a plug-in that is called with `split` and returns a Dataset.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from advbench.errors import UserError, reading
from advbench.registry import Entry, entries, find

if TYPE_CHECKING:
    from advbench.data.dataset import Dataset

SPLITS = ("train", "test")

Progress = Callable[[int, int | None, str], None]
"""Called with (bytes or items done, their total or None, what is being fetched or read)."""


def parse(spec: str) -> tuple[Entry, str | None]:
    """The entry and the argument (or None) of a dataset specification. Loads no torch.

    Raises UserError for an unknown name, a missing argument, or one that the dataset does not take.
    """
    name, colon, argument = spec.partition(":")
    entry = entries("data").get(name)
    if entry is None:
        return find("data", spec), None
    wanted = entry.about.get("argument")
    if wanted and not argument:
        raise UserError(f"dataset {name!r} needs an argument: write {name}:{wanted}")
    if colon and not wanted:
        raise UserError(f"dataset {name!r} takes no argument: write {name}, not {spec}")
    return entry, argument or None


def load(spec: str, split: str, *, progress: Progress | None = None, **settings: Any) -> Dataset:
    """The `split` ("train" or "test") of a dataset, on the CPU. It is downloaded on first use if need be.

    `settings` are those of the dataset's own loader, such as `resize` of imagefolder. Raises UserError for an
    unknown name or split, for data that cannot be obtained (listing what was tried) and for malformed data.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    entry, argument = parse(spec)
    if argument is not None:
        settings["path"] = argument
    if "progress" in inspect.signature(entry.load()).parameters:
        settings["progress"] = progress
    with reading(spec):
        dataset = entry.create(split=split, **settings)

    from advbench.data.dataset import Dataset

    if not isinstance(dataset, Dataset):
        raise UserError(f"{spec} returned {type(dataset).__name__}, not an advbench.data.dataset.Dataset")
    return dataset
