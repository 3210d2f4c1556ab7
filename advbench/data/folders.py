"""Class folders on disk: which folders are the splits and the classes, and which files their images. Loads no torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from advbench.errors import UserError, reading, shortened

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pfm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "val", "valid", "validation", "testing")  # in any case
CLASSES = "classes.json"
FIFTH = "@fifth"
_TEST_SHARE = 5  # with @fifth, about one in so many images is a test image
_SYSTEM = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # what operating systems leave behind
_MAX_CLASSES = 10**6
_SHOWN = 10  # classes, in a note


class Place(NamedTuple):
    """What `PATH`, `PATH@SIZE` or `PATH@HxW`, each also with `@fifth` behind it, names. `size` is (height, width)."""

    root: Path
    size: tuple[int, int] | None
    fifth: bool

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place that `text` names; a folder whose own name ends like this comes first. Raises UserError."""
        text, size, fifth = os.path.expanduser(text), None, False
        if text.endswith(FIFTH) and not os.path.exists(text):
            text, fifth = text.removesuffix(FIFTH), True
        match = re.fullmatch(r"(.+)@([0-9]+)(?:x([0-9]+))?", text)
        if match is not None and not os.path.exists(text):
            text, size = match[1], (int(match[2]), int(match[3] or match[2]))
            if not all(size):
                raise UserError(f"imagefolder: images of {size[0]}x{size[1]} pixels: each side must be at least 1")
        return cls(Path(text), size, fifth)


@dataclass(frozen=True)
class Listing:
    """The images of a split as (file, label).

    The first of each class by name come first, then the second, and so on: the first N images are of all classes.
    `classes`: their names by label. `closed`: whether there can be no further ones. `notes`: for the user.
    """

    classes: tuple[str, ...]
    images: tuple[tuple[Path, int], ...]
    closed: bool
    notes: tuple[str, ...]


def listing(place: Place, split: str) -> Listing:
    """The images of `split` ("train" or "test"). Raises UserError for folders that do not fit.

    - A folder `train` and one of TEST_NAMES are the splits; the training classes are the classes.
    - Class folders alone are a test split, all of it. With `@fifth` about a fifth of them, each chosen by the
      hash of its own name, is the test split and the rest the training split.
    - `classes.json`, if it is there, says the label of each folder: {"folder": label, ...} or a list of all classes in
      order. Otherwise the sorted names of the folders are the classes.
    """
    root, _, fifth = place
    if not root.is_dir():
        raise UserError(f"imagefolder: {root} is not a folder: it must hold train/CLASS/*.png or CLASS/*.png")
    train, test = split_folder(root, TRAIN_NAMES), split_folder(root, TEST_NAMES)
    source, flat = (train if split == "train" else test), train is None and test is None
    if flat:
        if split == "train" and not fifth and subfolders(root):
            raise UserError(
                f"imagefolder: {root} has no train folder: train on imagefolder:{root}{FIFTH}, which holds back a "
                "fifth of the images as the test split"
            )
        source = root
    elif fifth:
        raise UserError(f"imagefolder: {root} has folders for its splits: leave out {FIFTH}")
    if source is None:
        there, names = train or test or root, TEST_NAMES if split == "test" else TRAIN_NAMES
        raise UserError(
            f"imagefolder: {root} has {there.name}, but none of {', '.join(names)} with class folders; "
            f"imagefolder:{there} is {there.name} alone"
        )
    classes, labels, closed = classes_of(root, source, train or source)
    found = {folder.name: _images(folder) for folder in subfolders(source)}
    empty = [name for name, (files, _) in found.items() if not files]
    if empty and (split == "train" or source is root) and len(empty) < len(found):
        raise UserError(
            f"imagefolder: {source} has {_count(len(empty), 'class folder')} without images: {_some(empty)} "
            f"(images end in {', '.join(SUFFIXES)})"
        )
    images = [
        (file, labels[name])
        for name, (files, _) in found.items()
        for file in files
        if not fifth or _is_tested(root, file) == (split == "test")
    ]
    if not images:
        raise UserError(f"imagefolder: {root} has no images for the {split} split ({', '.join(SUFFIXES)})")
    skipped = sum((counts for _, counts in found.values()), Counter())
    counts = Counter(label for _, label in images)
    absent = [name for name, label in labels.items() if label not in counts]
    notes = [_about(classes, counts) + (f"; none of {_some(absent)}" if absent else "")]
    if fifth:
        notes.append("about a fifth, each image by the hash of its name, is held back as the test split")
    if skipped:
        notes.append(f"skipped: {', '.join(f'{count} {what}' for what, count in sorted(skipped.items()))}")
    others = [one.name for one in subfolders(root) if not flat and one not in (train, test)]
    if others:
        notes.append(f"folders that are not used: {_some(others)}")
    if outside := sum(_is_image(file) and file.is_file() for file in source.iterdir()):
        notes.append(f"{_count(outside, 'image')} of {source} outside of its class folders: not used")
    return Listing(classes, _in_turn(images), closed, tuple(notes))


def _in_turn(images: Sequence[tuple[Path, int]]) -> tuple[tuple[Path, int], ...]:
    before, turns = Counter[int](), []
    for file, label in images:
        turns.append((before[label], label, file))
        before[label] += 1
    return tuple((file, label) for _, label, file in sorted(turns))


def split_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder of a split: it has class folders in it, unlike a class that happens to be called "train"."""
    found = {
        entry.name.lower(): entry for entry in subfolders(root) if entry.name.lower() in names and subfolders(entry)
    }
    return next((found[name] for name in names if name in found), None)


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry.name))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not _hidden(file.name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM


def classes_of(root: Path, source: Path, defining: Path) -> tuple[tuple[str, ...], dict[str, int], bool]:
    """The names of the classes, the label of each folder, and whether there can be no other classes.

    `source` holds the class folders of the split, `defining` those that are the classes without `classes.json`.
    """
    names = [folder.name for folder in subfolders(source)]
    file = root / CLASSES
    if not file.exists():
        classes = [folder.name for folder in subfolders(defining)]
        unknown = sorted(set(names) - set(classes))
        if unknown:
            raise UserError(f"imagefolder: {source} has classes that {defining} lacks: {_some(unknown)}")
        if len(classes) < 2:
            raise UserError(
                f"imagefolder: {defining} must hold at least two class folders, not {len(classes)}, or {root} a file "
                f"{CLASSES} that says their labels"
            )
        return tuple(classes), {name: label for label, name in enumerate(classes)}, False
    with reading(file):
        said = json.loads(file.read_text(encoding="utf-8"))
    closed = isinstance(said, list) and all(isinstance(name, str) for name in said)
    labels = {name: label for label, name in enumerate(said)} if closed else said
    if (
        not isinstance(labels, dict)
        or not labels
        or not all(type(label) is int and 0 <= label < _MAX_CLASSES for label in labels.values())
        or (closed and len(labels) < len(said))
    ):
        raise UserError(
            f'{file} must be {{"folder": label, ...}} with labels from 0, or a list of all classes in order, '
            f"each once, not {shortened(said)}"
        )
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise UserError(f"imagefolder: {file} does not name the folders {_some(unknown)} of {source}")
    of_label: dict[int, list[str]] = {}
    for name, label in labels.items():
        of_label.setdefault(label, []).append(name)
    count = max(2, 1 + max(of_label))
    return tuple("/".join(of_label.get(label, [str(label)])) for label in range(count)), labels, closed


def _images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The images below a class folder, sorted, and what else is there, counted.

    Links to folders are followed once, and never to a folder above, which holds other classes.
    """
    top = Path(os.path.realpath(folder))
    found, others, seen = [], Counter[str](), {str(top), *map(str, top.parents)}

    def fail(error: OSError) -> None:
        raise UserError(f"imagefolder: cannot read {error.filename}: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        visible = [name for name in folders if not _hidden(name)]
        others["hidden files or folders"] += len(folders) - len(visible)
        folders[:] = [name for name in visible if os.path.realpath(os.path.join(place, name)) not in seen]
        seen |= {os.path.realpath(os.path.join(place, name)) for name in folders}
        for name in files:
            file = Path(place, name)
            if _hidden(name):
                others["hidden files or folders"] += 1
            elif _is_image(file):
                found.append(file)
            else:
                others[f"*{file.suffix.lower()}" if file.suffix else "files without a suffix"] += 1
    return sorted(found), +others


def _is_tested(root: Path, file: Path) -> bool:
    """Whether it is a test image: by its own name alone, so that no other image changes sides with it.

    Images that are added later must not turn ones that a model was trained on into its test images.
    """
    digest = hashlib.sha256(os.fsencode(file.relative_to(root).as_posix())).digest()
    return int.from_bytes(digest[:8]) % _TEST_SHARE == 0


def _about(classes: Sequence[str], counts: Counter[int]) -> str:
    """How many images each class has, in one line."""
    present = [f"{label} = {classes[label]} ({counts[label]})" for label in sorted(counts)]
    more = f", ... and {len(present) - _SHOWN} more" if len(present) > _SHOWN else ""
    return f"{_count(counts.total(), 'image')}, by class {', '.join(present[:_SHOWN])}{more}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
