"""Your own arrays in one file: `npz:PATH`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advbench.data.dataset import Dataset
from advbench.errors import UserError, reading
from advbench.registry import plain_dataset

ENTRIES: dict[str, dict[str, Any]] = {
    "npz": {
        "make": "load",
        "summary": "your arrays: x_train, y_train, x_test, y_test in one .npz file",
        "argument": "PATH",
        "scale": 255.0,
        "reference_eps": {},
    }
}
NAMES = (("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_images", "{}_labels"))
_CHANNELS = (1, 3)

Array = np.ndarray[Any, np.dtype[Any]]


def load(split: str, path: str) -> Dataset:
    """A split of a file with `x_train, y_train, x_test, y_test` (or `train_x`..., `train_images, train_labels`...).

    Images: (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, uint8, or floats in [0, 1] that are
    multiples of 1/255. Labels: whole numbers from 0, (N,) or (N, 1). An optional array `class_names` is used. Raises
    UserError for anything else.
    """
    file = Path(path).expanduser()
    with reading(file), file.open("rb") as stream:
        try:
            stored = np.load(stream, allow_pickle=False)
            if not isinstance(stored, Mapping):
                raise UserError(f"npz: {file} holds a single array: save x_train, y_train, x_test, y_test")
            images = _images(_pick(stored, split, 0, file), split, file)
            labels = {part: _labels(_pick(stored, part, 1, file), part, file) for part in ("train", "test")}
            names = [str(name) for name in stored["class_names"].ravel()] if "class_names" in stored else []
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"npz: {file} is not an .npz file of plain arrays (pickles are never opened)") from error
    if len(images) != len(labels[split]):
        raise UserError(f"npz: {file} has {len(images)} {split} images, but {len(labels[split])} labels")
    classes = max(int(values.max(initial=0)) for values in labels.values()) + 1
    return Dataset.whole(
        torch.from_numpy(images),
        torch.from_numpy(labels[split]),
        name=plain_dataset(f"npz:{path}"),
        split=split,
        num_classes=max(classes, len(names)),
        class_names=names,
    )


def _pick(stored: Mapping[str, Array], split: str, kind: int, file: Path) -> Array:
    choices = [pair[kind].format(split) for pair in NAMES]
    for name in choices:
        if name in stored:
            return stored[name]
    raise UserError(f"npz: {file} lacks {' or '.join(choices)}; it has {', '.join(sorted(stored)) or 'nothing'}")


def _labels(values: Array, split: str, file: Path) -> Array:
    """Labels as int64 (N,). Raises UserError."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iu" or (values.size and values.min() < 0):
        raise UserError(
            f"npz: the {split} labels of {file} must be whole numbers from 0, (N,) or (N, 1), "
            f"not {values.dtype} {values.shape}"
        )
    return values.astype(np.int64)


def _images(values: Array, split: str, file: Path) -> Array:
    """Images as uint8 (N, C, H, W). Raises UserError."""
    what = f"npz: the {split} images of {file}"
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and (values.shape[1] in _CHANNELS) != (values.shape[3] in _CHANNELS):
        values = values if values.shape[1] in _CHANNELS else values.transpose(0, 3, 1, 2)
    else:
        raise UserError(
            f"{what} must be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, not {values.shape}"
        )
    if values.dtype.kind == "f":
        # With `not`, so that NaN is refused too.
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise UserError(f"{what} are {values.dtype} from {values.min():g} to {values.max():g}, not in [0, 1]")
        exact = values.astype(np.float64) * 255
        whole = np.rint(exact)
        if np.abs(exact - whole).max(initial=0) > 0.1:  # the largest error of half precision
            raise UserError(f"{what} are not multiples of 1/255: round them to uint8, as images are stored")
        values = whole.astype(np.uint8)
    if values.dtype != np.uint8:
        raise UserError(f"{what} must be uint8, or floats in [0, 1], not {values.dtype}")
    return np.ascontiguousarray(values)
