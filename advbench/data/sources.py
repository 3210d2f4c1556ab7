"""Obtaining a dataset: from the cache, from files placed by hand, then from each of its sources in turn."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from advbench.data import Progress, cache
from advbench.data.dataset import Dataset, fingerprint
from advbench.errors import Interrupted, UserError
from advbench.files import locked

Splits = dict[str, tuple[Tensor, Tensor]]
"""Split name -> (images uint8 (N, C, H, W), labels int64 (N,))."""

_LOCK_SECONDS = 3600.0  # as long as another process may take to fetch the same dataset


@dataclass(frozen=True)
class Source:
    """One way to get a dataset.

    `fetch(folder, progress)` writes `files` (names or patterns, each of which must match) into `folder`;
    `decode(folder, scratch)` reads them and may unpack into `scratch`. They may fail with any error, of a client, a
    server, a forged archive or the libraries that decode it.
    """

    label: str
    files: tuple[str, ...]
    fetch: Callable[[Path, Progress | None], None]
    decode: Callable[[Path, Path], Splits]


def dataset(
    name: str,
    split: str,
    about: Mapping[str, Any],
    sources: Callable[[], Sequence[Source]],
    digests: Mapping[str, str],
    progress: Progress | None,
) -> Dataset:
    """The whole `split` from `obtain`. `about`: the registry's entry, with num_classes and class_names.

    Raises UserError as `obtain` does.
    """
    images, labels = obtain(name, split, sources, digests, progress)
    classes, names = about["num_classes"], about.get("class_names", ())
    return Dataset.whole(images, labels, name=name, split=split, num_classes=classes, class_names=names)


def obtain(
    name: str,
    split: str,
    sources: Callable[[], Sequence[Source]],
    digests: Mapping[str, str],
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Images, uint8 (N, C, H, W), and labels, int64 (N,), from the cache or the first source with the right arrays.

    `sources` is called only if the cache does not have them, since importing torchvision takes seconds. `digests`
    gives each split's published `fingerprint`. Without one, the first arrays are trusted (their source checks its
    files itself), and the cache is checked against the hash stored with them. A damaged cache file is renamed, with a
    warning. Raises UserError that lists everything tried and says which files to place where.
    """
    folder = cache.cache_folder() / name
    file = folder / f"{split}.npz"
    try:
        found = cache.read(file, digests.get(split))
    except cache.Damaged:
        found = None  # read again below, under the lock, when no other process can be writing it
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; {cache.VARIABLE} can name another folder") from error
    with locked(folder / ".lock", timeout=_LOCK_SECONDS):
        try:
            found = cache.read(file, digests.get(split))
        except cache.Damaged as error:
            aside = cache.move_aside(file)
            warnings.warn(f"{file} is damaged: {error}; kept as {aside.name}, fetching it again", stacklevel=2)
        if found is not None:
            return found
        splits = _first(name, folder, sources(), digests, progress)
        for part, (images, labels) in splits.items():
            cache.write(folder / f"{part}.npz", images, labels)
        return splits[split]


def _first(
    name: str,
    folder: Path,
    sources: Sequence[Source],
    digests: Mapping[str, str],
    progress: Progress | None,
) -> Splits:
    tried = [f"{folder} (holds neither the decoded arrays nor the files below)"]
    for source in sources:
        if not all(any(folder.glob(pattern)) for pattern in source.files):
            continue
        try:
            return _decoded(name, source, folder, folder, digests, progress)
        except Interrupted:
            raise
        except Exception as error:
            tried[0] = f"{folder} ({', '.join(source.files)}: {_reason(error)})"
            warnings.warn(f"files placed by hand are not used: {tried[0]}", stacklevel=3)
    for source in sources:
        # In the cache folder, whose disk has the space; the scratch folder is removed afterwards.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            try:
                source.fetch(Path(scratch), progress)
                return _decoded(name, source, Path(scratch), folder, digests, progress)
            except Interrupted:
                raise
            except Exception as error:
                tried.append(f"{source.label} ({_reason(error)})")
    wanted = " or ".join(" + ".join(source.files) for source in sources)
    raise UserError(
        f"cannot get {name}: tried {'; '.join(tried)}. "
        f"To place it by hand, put {wanted} into {folder}, or let {cache.VARIABLE} name a folder that has it"
    )


def _decoded(
    name: str, source: Source, files: Path, folder: Path, digests: Mapping[str, str], progress: Progress | None
) -> Splits:
    if progress is not None:
        progress(0, None, f"decoding {name}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as scratch:
        splits = source.decode(files, Path(scratch))
    for part, digest in digests.items():
        found = fingerprint(*splits[part])
        if found != digest:
            raise ValueError(f"its {part} arrays have sha256 {found[:12]}..., not {digest[:12]}...")
    return splits


def _reason(error: BaseException) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 200 else line[:197] + "..."
