"""Image folders beside a model: which images it was trained on, and whether its classes have their labels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from advbench.data.folders import CLASSES, FIFTH, TEST_NAMES, TRAIN_NAMES, Place, classes_of, split_folder, subfolders
from advbench.errors import UserError
from advbench.registry import entries


def is_flat(root: Path) -> bool:
    """Whether `root` holds class folders without train and test folders above them."""
    if not root.is_dir() or split_folder(root, TRAIN_NAMES) or split_folder(root, TEST_NAMES):
        return False
    return bool(subfolders(root))


def held_back(text: str) -> str:
    """`text`, an argument of imagefolder, as a run that trains on it is recorded: flat folders with FIFTH."""
    place = Place.parse(text)
    return text if place.fifth or not is_flat(place.root) else text + FIFTH


def check_held_back(trained: str | None, tested: str) -> None:
    """Raise UserError if the dataset `tested` has images that a run on the dataset `trained` was trained on."""
    names, paths = zip(*(spec.partition(":")[::2] for spec in (trained or "", tested)), strict=True)
    if set(names) != {"imagefolder"}:
        return
    own, other = (Place.parse(path) for path in paths)
    if own.fifth and not other.fifth and os.path.realpath(own.root) == os.path.realpath(other.root):
        raise UserError(
            f"the model was trained on four fifths of {tested}: leave out the dataset, or write {tested}{FIFTH}, the "
            "fifth that was held back"
        )
    training = None if own.fifth or not own.root.is_dir() else split_folder(own.root, TRAIN_NAMES)
    if training and not other.fifth and os.path.realpath(training) == os.path.realpath(other.root):
        raise UserError(f"the model was trained on the images of {tested}: leave out the dataset, for its test images")


def class_names(spec: str) -> tuple[str, ...]:
    """The names of the classes of a dataset by label, without loading it; empty where they are not known."""
    name, _, path = spec.partition(":")
    entry = entries("data").get(name)
    if name != "imagefolder" or not path:
        return tuple(entry.about.get("class_names", ())) if entry else ()
    root = Place.parse(path).root
    with suppress(UserError, OSError):  # a folder that has changed or gone says nothing
        source = split_folder(root, TRAIN_NAMES) or split_folder(root, TEST_NAMES) or root
        return classes_of(root, source, source)[0]
    return ()


def check_names(known: str | None, tested: str, names: Mapping[int, str]) -> None:
    """Raise UserError if class folders have other labels than their names have in the dataset that a model is for.

    `known`: that dataset. `tested`: the dataset of the folders, whose labels have `names`. A file CLASSES in it is
    believed.
    """
    kind, _, path = tested.partition(":")
    if kind != "imagefolder" or (file := Place.parse(path).root / CLASSES).exists():
        return
    labels = {name: label for label, name in enumerate(class_names(known or ""))}
    other = {name: labels[name] for label, name in names.items() if labels.get(name, label) != label}
    if other:
        name, label = next(iter(other.items()))
        said = json.dumps({name: labels.get(name, "LABEL") for name in names.values()})
        raise UserError(
            f"{name} is class {label} of {known}, but not of {tested}, whose folders are numbered by name: write "
            f"{said if len(said) <= 300 else 'the label of each folder'} into {file}"
        )
