"""Images in folders, one folder for each class: `imagefolder:PATH` or `imagefolder:PATH@SIZE`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advbench.data import Progress
from advbench.data.dataset import Dataset
from advbench.errors import UserError, reading
from advbench.registry import plain_dataset

ENTRIES: dict[str, dict[str, Any]] = {
    "imagefolder": {
        "make": "load",
        "summary": "your images: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png",
        "argument": "PATH",
        "scale": 255.0,
        "reference_eps": {},
    }
}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TEST_NAMES = ("test", "val", "valid", "validation")
_TEST_SHARE = 5  # without a test folder, one in so many images of a class is a test image


def load(split: str, path: str, resize: int | None = None, progress: Progress | None = None) -> Dataset:
    """A split of the images under `path`, as RGB. The classes are the sorted names of the folders.

    Folders `train` and `test` (or `val`) are the splits. With class folders alone, a fifth of each class, chosen by
    a hash of the file names, is the test split. All images must have one size, unless `resize` (or `@SIZE` after the
    path) is given: then the shorter side is scaled to it and the central square is cropped. Raises UserError for a
    path, image or class that does not fit.
    """
    match = re.fullmatch(r"(.+)@(\d+)", path)
    if match is not None and resize is None and not Path(path).exists():
        path, resize = match[1], int(match[2])
    if resize is not None and resize < 1:
        raise UserError(f"resize {resize} must be at least 1")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"imagefolder: {root} is not a folder: it must hold train/CLASS/*.png or CLASS/*.png")
    classes, files = _listing(root, split)
    images: list[Tensor] = []
    for number, (file, _) in enumerate(files):
        images.append(_read(file, resize))
        if images[-1].shape != images[0].shape:
            raise UserError(
                f"imagefolder: {file} is {_size(images[-1])}, {files[0][0]} {_size(images[0])}: "
                f"make them one size, or let imagefolder:{path}@{min(images[0].shape[1:])} resize them"
            )
        if progress is not None:
            progress(number + 1, len(files), "images")
    return Dataset.whole(
        torch.stack(images),
        torch.tensor([label for _, label in files]),
        name=plain_dataset(f"imagefolder:{path}" + (f"@{resize}" if resize else "")),
        split=split,
        num_classes=len(classes),
        class_names=classes,
    )


def _listing(root: Path, split: str) -> tuple[list[str], list[tuple[Path, int]]]:
    """The class names, and the files of the split with their labels, sorted by class and name. Raises UserError."""
    train = root / "train"
    if not train.is_dir():
        classes = _classes(root)
        files = [
            (file, label)
            for label, name in enumerate(classes)
            for file, tested in _with_split(root, _images(root / name))
            if tested == (split == "test")
        ]
    else:
        classes = _classes(train)
        place = train if split == "train" else _test_folder(root)
        unknown = sorted(set(_classes(place)) - set(classes))
        if unknown:
            raise UserError(f"imagefolder: {place} has classes that {train} lacks: {', '.join(unknown[:5])}")
        files = [(file, label) for label, name in enumerate(classes) for file in _images(place / name)]
    if not files:
        raise UserError(f"imagefolder: {root} has no images for the {split} split ({', '.join(SUFFIXES)})")
    return classes, files


def _test_folder(root: Path) -> Path:
    for name in _TEST_NAMES:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"imagefolder: {root} has train, but none of {', '.join(_TEST_NAMES)}")


def _classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if len(names) < 2:
        raise UserError(f"imagefolder: {folder} must hold at least two class folders, not {len(names)}")
    return names


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _with_split(root: Path, files: list[Path]) -> list[tuple[Path, bool]]:
    """Each file, and whether it is a test image: decided by the names, so every machine decides alike."""
    drawn = sorted(files, key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    tested = set(drawn[: len(files) // _TEST_SHARE])
    return [(file, file in tested) for file in files]


def _read(file: Path, resize: int | None) -> Tensor:
    """The image in `file`, uint8 (3, H, W). Raises UserError if it cannot be read."""
    with reading(file), Image.open(file) as opened:
        picture = opened.convert("RGB")
    if resize is not None:
        ratio = resize / min(picture.size)
        width, height = (max(resize, round(side * ratio)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - resize) // 2, (height - resize) // 2
        picture = picture.crop((left, top, left + resize, top + resize))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
