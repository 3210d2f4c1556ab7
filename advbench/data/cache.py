"""The cache of decoded datasets: one file for each split, whose hash is checked whenever it is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor

from advbench.data.dataset import fingerprint
from advbench.errors import UserError, one_line
from advbench.files import atomic_path

VARIABLE = "ADVBENCH_DATA"


class Damaged(Exception):
    """A cached file is damaged. The message says how."""


def cache_folder() -> Path:
    """The folder of the cache: the one that ADVBENCH_DATA names, else `data` in the user's cache folder."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("advbench") / "data"


def read(file: Path, published: str | None) -> tuple[Tensor, Tensor] | None:
    """Images, uint8 (N, C, H, W), and labels, int64 (N,), in `file`; None if there is no such file.

    Raises Damaged if their sha256 is not the `published` one (or, if that is None, the one stored with them), and
    UserError if the file cannot be opened.
    """
    try:
        opened = file.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; {VARIABLE} can name another folder") from error
    try:
        with opened as stream, np.load(stream, allow_pickle=False) as stored:
            images, labels = (torch.from_numpy(stored[name]) for name in ("images", "labels"))
            labels, recorded = labels.long(), str(stored["sha256"])
            found = fingerprint(images, labels)
    except Exception as error:  # zipfile, zlib, numpy and torch raise many kinds of error for a damaged file
        raise Damaged(f"not readable ({one_line(error)})") from error
    if found != (published or recorded):
        raise Damaged(f"sha256 {found[:12]}..., not {(published or recorded)[:12]}...")
    return images, labels


def write(file: Path, images: Tensor, labels: Tensor) -> None:
    """Store a split, completely or not at all. Raises UserError if it cannot be written."""
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            images=images.contiguous().numpy(),
            labels=labels.numpy(),
            sha256=np.array(fingerprint(images, labels)),
        )


def move_aside(file: Path) -> Path:
    """Rename a damaged `file`, which may still be of use, to a name that nothing reads. Returns the new path.

    Raises UserError if it cannot be renamed.
    """
    number = 1
    while (aside := file.with_name(f"{file.name}.damaged-{number}")).exists():
        number += 1
    try:
        return file.rename(aside)
    except OSError as error:
        raise UserError(f"{file} is damaged and cannot be moved aside: {error.strerror}") from error
