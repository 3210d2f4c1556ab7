"""SVHN, cropped street view house numbers (Netzer et al. 2011): 32x32 colour images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from advbench.data import Progress
from advbench.data.dataset import Dataset
from advbench.data.fetch import download
from advbench.data.sources import Source, Splits, dataset

ENTRIES: dict[str, dict[str, Any]] = {
    "svhn": {
        "make": "load",
        "summary": "house numbers, 32x32 colour, 73,257 + 26,032",
        "num_classes": 10,
        "shape": [3, 32, 32],
        "scale": 255.0,
        "sizes": {"train": 73257, "test": 26032},
        "reference_eps": {},
        "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        "sources": ["torchvision's download"],
    }
}
_SPLITS = ("train", "test")


def load(split: str, progress: Progress | None = None) -> Dataset:
    """A split of SVHN, without its "extra" part. Raises UserError if the source does not have it.

    The hash of the decoded arrays is not known: the md5 of the files is checked, later the hash that the cache stored.
    """
    return dataset("svhn", split, ENTRIES["svhn"], _sources, {}, progress)


def _sources() -> list[Source]:
    from torchvision.datasets import SVHN

    files = tuple(SVHN.split_list[part][1] for part in _SPLITS)
    return [Source("torchvision's download", files, _fetch, _decode)]


def _fetch(folder: Path, progress: Progress | None) -> None:
    from torchvision.datasets import SVHN

    for part in _SPLITS:
        url, file, md5 = SVHN.split_list[part]
        download([url], folder / file, md5, progress)


def _decode(folder: Path, scratch: Path) -> Splits:
    from torchvision.datasets import SVHN

    splits = {}
    for part in _SPLITS:
        opened = SVHN(folder, split=part)  # torchvision checks the md5 of the file before reading it
        splits[part] = torch.from_numpy(opened.data).contiguous(), torch.from_numpy(opened.labels)
    return splits
