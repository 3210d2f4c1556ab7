"""Your own arrays in one file: `npz:PATH`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from advbench.data.dataset import Dataset
from advbench.data.tensors import from_tensors
from advbench.errors import UserError, reading
from advbench.registry import plain_dataset

ENTRIES: dict[str, dict[str, Any]] = {
    "npz": {
        "make": "load",
        "summary": "your arrays: x_test, y_test, x_train, y_train in one .npz file, or what attack wrote",
        "argument": "PATH",
        "scale": 255.0,
        "reference_eps": {},
    }
}
NAMES = (("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_images", "{}_labels"))
EXAMPLES = ("x_adv", "y")
SINGLE = (EXAMPLES, ("x", "y"), ("images", "labels"))  # of files with one split, which is for testing
_WORDS = ("num_classes", "class_names", "class_map", "layout")

Array = np.ndarray[Any, np.dtype[Any]]


def load(split: str, path: str) -> Dataset:
    """A split of a file with `x_train, y_train` or `x_test, y_test`, or both.

    The names `train_x`... and `train_images, train_labels`... do too, and `x, y` or `images, labels` for testing. Of a
    file that `advbench attack` wrote, the adversarial examples are read (`x_adv`). Images and labels are as in
    `tensors.from_tensors`, and so are the optional arrays `num_classes`, `class_names`, `layout` and `class_map`, which
    is (M, 2): a stored label and its class. Raises UserError for anything else.
    """
    file = Path(path).expanduser()
    name = plain_dataset(f"npz:{path}")
    with reading(file), file.open("rb") as stream:
        try:
            stored = np.load(stream, allow_pickle=False)
            if not isinstance(stored, Mapping):
                raise UserError(f"npz: {file} holds a single array: save x_test and y_test, or x_train and y_train")
            x, y = _names(stored, split, file)
            images, labels = stored[x], stored[y]
            told = {word: stored[word] for word in _WORDS if word in stored}
            others = [stored[label] for _, label in _pairs("train" if split == "test" else "test") if label in stored]
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"npz: {file} is not an .npz file of plain arrays (pickles are never opened)") from error
    told = _told(told, name)
    data = from_tensors(images, labels, name=name, split=split, **told)
    if not data.num_classes_known and others and others[0].dtype.kind in "iu":
        there, classes = np.unique(others[0]).tolist(), told.get("class_map")
        if classes is not None:
            there = [classes[label] for label in there if label in classes]
        data = replace(data, num_classes=1 + max([data.num_classes - 1, *there]))
    return replace(data, notes=("the images are adversarial examples (x_adv)",)) if (x, y) == EXAMPLES else data


def _pairs(split: str) -> list[tuple[str, str]]:
    """The names that images and labels of a split may have."""
    return [*((x.format(split), y.format(split)) for x, y in NAMES), *(SINGLE if split == "test" else ())]


def _names(stored: Mapping[str, Array], split: str, file: Path) -> tuple[str, str]:
    """The names of the images and labels of `split` in the file. Raises UserError."""
    for x, y in _pairs(split):
        if x in stored:
            lacking = y
            if y in stored:
                return x, y
            break
    else:
        lacking = " or ".join(x for x, _ in _pairs(split))
    raise UserError(f"npz: {file} lacks {lacking}; it has {', '.join(sorted(stored)) or 'nothing'}")


def _told(stored: Mapping[str, Array], name: str) -> dict[str, Any]:
    """The arguments of `from_tensors` that a file gives. Raises UserError."""
    told: dict[str, Any] = {}
    if "num_classes" in stored:
        told["num_classes"] = stored["num_classes"].ravel()[0] if stored["num_classes"].size == 1 else None
        if told["num_classes"] is None:
            raise UserError(f"{name}: num_classes must be one number, not {stored['num_classes'].shape}")
    if "class_names" in stored:
        told["class_names"] = stored["class_names"].ravel().tolist()
    if "layout" in stored:
        told["layout"] = str(stored["layout"])
    if "class_map" in stored:
        pairs = stored["class_map"]
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise UserError(
                f"{name}: class_map must be whole numbers (M, 2), a stored label and its class in each row, not "
                f"{pairs.dtype} {pairs.shape}"
            )
        told["class_map"] = dict(pairs.tolist())
        if len(told["class_map"]) < len(np.unique(pairs, axis=0)):
            raise UserError(f"{name}: class_map gives one label two classes")
    return told
