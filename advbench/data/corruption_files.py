"""The published files of corrupted test images, where they lie in the cache folder.

- CIFAR-10-C and CIFAR-100-C: `CORRUPTION.npy`, uint8 (50000, 32, 32, 3), severity after severity, and `labels.npy`.
  They belong to the test splits of cifar10 and cifar100.
- ImageNet-C and Tiny-ImageNet-C: `CORRUPTION/SEVERITY/CLASS/NAME.JPEG`, also below folders such as `noise` and `blur`.
  They belong to an image folder whose test images have counterparts with the same class folder and file name.
"""

from __future__ import annotations

from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from advbench.data import pictures
from advbench.data.cache import cache_folder
from advbench.data.dataset import Dataset
from advbench.data.folders import Place, listing
from advbench.errors import UserError, reading

COMMON = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
ARRAYS = {"CIFAR-10-C": "cifar10", "CIFAR-100-C": "cifar100"}
FOLDERS = ("ImageNet-C", "Tiny-ImageNet-C")
PUBLISHED = (*ARRAYS, *FOLDERS)
_FILES: WeakKeyDictionary[Dataset, list[Path]] = WeakKeyDictionary()  # listing ImageNet's takes seconds
_GROUPS = ("", "noise", "blur", "weather", "digital")


def published(data: Dataset) -> str | None:
    """The one of PUBLISHED that is complete in the cache folder and belongs to the images of `data`; else None."""
    if data.split != "test":
        return None
    for name, dataset in ARRAYS.items():
        files = [cache_folder() / name / f"{part}.npy" for part in (*COMMON, "labels")]
        if data.name == dataset and all(file.is_file() for file in files):
            return name
    for name in FOLDERS:
        places = [_place(name, corruption, severity) for corruption in COMMON for severity in SEVERITIES]
        originals = _originals(data) if all(places) else []
        if originals and all(_counterpart(file, places[0]) for file in originals):
            return name
    return None


def read(data: Dataset, source: str, name: str, severity: int) -> Tensor:
    """The images of `data` after the corruption `name`, float32 (N, 3, H, W) in [0, 1] on its device.

    Those of FOLDERS are scaled and cropped to the size of `data`, where it is another. Raises UserError where the files
    do not fit.
    """
    if source in ARRAYS:
        return _of_arrays(data, cache_folder() / source, name, severity)
    place, images = _place(source, name, severity), []
    for file in _originals(data):
        found = _counterpart(file, place)
        if found is None:
            raise UserError(f"{place or cache_folder() / source} lacks the image {file.parent.name}/{file.name}")
        try:
            images.append(pictures.read(found, data.shape[1:])[0])
        except UserError as error:
            raise UserError(f"cannot read {found}: {error}") from error
    return torch.stack(images).to(data.device).float() / 255


def _of_arrays(data: Dataset, folder: Path, name: str, severity: int) -> Tensor:
    with reading(folder):
        images = np.load(folder / f"{name}.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
    count = len(images) // len(SEVERITIES)
    rows = data.indices.cpu().numpy()
    if images.ndim != 4 or len(labels) != len(images) or rows.max() >= count:
        raise UserError(f"{folder}/{name}.npy holds {len(images)} images, not {len(SEVERITIES)} times the test images")
    at = rows + (severity - 1) * count
    if not np.array_equal(labels[at], data.labels.cpu().numpy()):
        raise UserError(f"{folder}/labels.npy has other labels than {data.name}")
    return torch.from_numpy(images[at]).permute(0, 3, 1, 2).contiguous().to(data.device).float() / 255


def _place(source: str, name: str, severity: int) -> Path | None:
    """The folder of a corruption at a severity; None if there is none."""
    places = [cache_folder() / source / group / name / str(severity) for group in _GROUPS]
    return next((place for place in places if place.is_dir()), None)


def _originals(data: Dataset) -> list[Path]:
    """The files of the images of `data`; none if it is no image folder, or no longer the same one."""
    kind, _, path = data.name.partition(":")
    if kind != "imagefolder":
        return []
    if data not in _FILES:
        images, rows = listing(Place.parse(path), "test").images, data.indices.tolist()
        same = max(rows) < len(images) and [images[row][1] for row in rows] == data.labels.tolist()
        _FILES[data] = [images[row][0] for row in rows] if same else []
    return _FILES[data]


def _counterpart(file: Path, place: Path | None) -> Path | None:
    """The corrupted form of `file` in the folder of a corruption at a severity; None if there is none."""
    if place is None:
        return None
    names = (f"{file.stem}.JPEG", file.name)
    return next((found for name in names if (found := place / file.parent.name / name).is_file()), None)
