"""Tables and figures made from records alone: the same records always give the same bytes.

A leaderboard is a folder. `folder/records/<dataset>/<norm>/<id>.json` are its records; `folder/<dataset>-<norm>.csv`,
`.md` and `.svg` are generated from them. Superseded records are left out. Damaged records are left out and reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import filelock

from advbench.files import locked, write_atomic
from advbench.leaderboard.csv import COLUMNS, to_csv
from advbench.leaderboard.drawing import to_svg
from advbench.leaderboard.markdown import GENERATED, to_markdown
from advbench.leaderboard.ranking import rank, reference_eps
from advbench.record import Damage, Fates, Record, load_records, slug

__all__ = [
    "COLUMNS",
    "Built",
    "Published",
    "build",
    "check",
    "publish",
    "rank",
    "reference_eps",
    "render",
    "to_csv",
    "to_markdown",
    "to_svg",
]


class Built(NamedTuple):
    """The generated files, and the records that could not be used."""

    files: tuple[Path, ...]
    damaged: tuple[Damage, ...]


class Published(NamedTuple):
    """Where the record was saved, and the other records of its dataset and norm that could not be used."""

    path: Path
    damaged: tuple[Damage, ...]


def build(records_folder: Path, out_folder: Path) -> Built:
    """Write the tables and figures of all records below `records_folder` into `out_folder`.

    Raises UserError when a file cannot be written.
    """
    with locked(out_folder / ".lock"):
        return _build(records_folder, out_folder)


def publish(record: Record, fates: Fates, folder: Path) -> Published:
    """Save `record` in the leaderboard `folder` and bring the files of its dataset and norm up to date.

    Any number of processes may publish at once. One of them builds and one waits to build next. The others return at
    once: the waiting process has yet to read the records, and will find theirs. So the files are complete when the
    last process has returned. Raises UserError (see `Record.save`).
    """
    path = record.save(folder, fates)
    turn = filelock.FileLock(folder / ".turn")
    try:
        turn.acquire(timeout=0)
    except filelock.Timeout:
        return Published(path, ())
    try:
        with locked(folder / ".lock"):
            turn.release()
            return Published(path, _build(path.parent, folder).damaged)
    finally:
        turn.release()


def check(folder: Path) -> list[Damage]:
    """The damaged records of the leaderboard `folder`, and the generated files that do not match the records.

    An SVG of the same numbers that another version of matplotlib drew counts as a match.
    """
    records, found = load_records(folder / "records")
    expected = render(records)
    for name, content in expected.items():
        path = folder / name
        if not path.is_file():
            found.append(Damage(path, f"{path} is missing: run make leaderboards"))
        elif not _same(path.read_bytes(), content):
            found.append(Damage(path, f"{path} does not match the records: run make leaderboards"))
    for path in sorted(folder.glob("*.md")):
        if path.name not in expected and path.read_text(encoding="utf-8", errors="replace").startswith(GENERATED):
            found.append(Damage(path, f"{path} has no records behind it: remove it with its .csv and .svg"))
    return found


def render(records: Iterable[Record]) -> dict[str, bytes]:
    """The content of each generated file by its name: three files for each dataset and norm, the CSV last."""
    given = {record.id: record for record in records}
    superseded = {record.supersedes for record in given.values()}
    groups: dict[str, list[Record]] = {}
    for key in sorted(given.keys() - superseded):
        record = given[key]
        groups.setdefault(f"{slug(record.dataset.name)}-{record.norm}", []).append(record)
    files: dict[str, bytes] = {}
    for name, group in sorted(groups.items()):
        reference = reference_eps(group)
        ranked, below = rank(group, reference)
        files[f"{name}.svg"] = to_svg(ranked, below, reference)
        files[f"{name}.md"] = to_markdown(ranked, below, reference).encode()
        files[f"{name}.csv"] = to_csv(group).encode()
    return files


def _build(records_folder: Path, out_folder: Path) -> Built:
    records, damaged = load_records(records_folder)
    written = []
    for name, content in render(records).items():
        path = out_folder / name
        if not (path.is_file() and _same(path.read_bytes(), content)):
            write_atomic(path, content)
        written.append(path)
    return Built(tuple(written), tuple(damaged))


def _same(existing: bytes, wanted: bytes) -> bool:
    """Whether two files are equal, or show the same numbers drawn by different versions of matplotlib."""
    if existing == wanted:
        return True
    numbers, version = rb"numbers [0-9a-f]{64}", rb"Matplotlib v[^,<]*"
    old, new = (tuple(re.search(pattern, content) for pattern in (numbers, version)) for content in (existing, wanted))
    if not all(old) or not all(new):
        return False
    old_numbers, old_version = (match[0] for match in old if match)
    new_numbers, new_version = (match[0] for match in new if match)
    return old_numbers == new_numbers and old_version != new_version
