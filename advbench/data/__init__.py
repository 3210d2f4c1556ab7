"""Datasets as tensors: `load("cifar10", "test")`. Each file here with ENTRIES registers its names.

A specification is a name (`mnist`), a name with an argument (`imagefolder:PATH`, `npz:PATH`) or
`package.module:callable`, a plug-in that is called with `split` if it takes that, and returns a Dataset or whatever
`advbench.data.tensors.from_object` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from advbench.errors import UserError, reading
from advbench.registry import Entry, entries, find, parameters

if TYPE_CHECKING:
    from advbench.data.dataset import Dataset

SPLITS = ("train", "test")

Progress = Callable[[int, int | None, str], None]
"""Called with (bytes or items done, their total or None, what is done): "fetching FILE" counts bytes, others items."""
FETCHING = "fetching "


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
    from advbench import rng
    from advbench.data.dataset import Dataset

    known = parameters(entry.load())
    if "progress" in known:
        settings["progress"] = progress
    notes: tuple[str, ...] = ()
    if "split" in known or any(one.kind is one.VAR_KEYWORD for one in known.values()):
        settings["split"] = split
    else:
        notes = (f"{spec} takes no split: its images for testing are those for training",)
    with reading(spec), rng.kept(0):  # a plug-in may draw what goes into which split
        dataset = entry.create(**settings)
    if not isinstance(dataset, Dataset):
        from advbench.data.tensors import from_object

        dataset = from_object(dataset, name=spec, split=split)
    return replace(dataset, notes=(*dataset.notes, *notes)) if notes else dataset
