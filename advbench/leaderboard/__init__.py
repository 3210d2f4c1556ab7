"""Tables and figures made from records alone: the same records always give the same bytes.

A leaderboard is a folder. `folder/records/<dataset>/<norm>/<id>.json` are its records, beside which a notice may retire
or rename one; `folder/<dataset>-<norm>.csv`, `.md` and `.svg`, and `folder/index.html` with all of them, are generated
from these. They link `folder/README.md`, where its owner says what the models are, if it is there. Damaged records and
notices are left out and reported.

In a Python program the package itself can be called: `advbench.leaderboard(folder)` is `build_frame`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from advbench.errors import UserError
from advbench.figure import same
from advbench.files import Held, locked, write_atomic
from advbench.leaderboard.csv import COLUMNS, rows, to_csv
from advbench.leaderboard.drawing import to_svg
from advbench.leaderboard.markdown import ABOUT, GENERATED, to_markdown
from advbench.leaderboard.page import HEAD, PAGE, to_html
from advbench.leaderboard.ranking import Board, board, named, reference_eps
from advbench.public import checked, make_callable
from advbench.record import (
    Damage,
    Fates,
    Notice,
    Record,
    load_notices,
    load_record,
    load_records,
    load_with_fates,
    record_files,
    slug,
    superseded,
    write_notice,
)

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "COLUMNS",
    "Board",
    "Built",
    "Published",
    "board",
    "build",
    "build_frame",
    "check",
    "check_folder",
    "find_folder",
    "find_record",
    "find_shown",
    "publish",
    "reference_eps",
    "rename",
    "render",
    "retire",
    "to_csv",
    "to_html",
    "to_markdown",
    "to_svg",
]


class Built(NamedTuple):
    """The generated files, what they show, and the records and notices that could not be used."""

    files: tuple[Path, ...]
    boards: tuple[Board, ...]
    damaged: tuple[Damage, ...]


class Published(NamedTuple):
    """Where the record was saved, and the other records of its dataset and norm that could not be used."""

    path: Path
    damaged: tuple[Damage, ...]


def build(records_folder: Path, out_folder: Path) -> Built:
    """Write the tables and figures of all records below `records_folder` into `out_folder`.

    Raises UserError when a file cannot be written.
    """
    check_folder(out_folder)
    with locked(out_folder / ".lock"):
        return _build(records_folder, out_folder)


@checked
def build_frame(folder: str | Path) -> DataFrame:
    """Build the leaderboard `folder`, and return its CSV as a pandas DataFrame: one row for each record and eps.

    Accuracies are fractions. A warning names each damaged file, which is left out. Raises UserError for a folder
    without records, and when a file cannot be written.
    """
    import pandas as pd

    place = find_folder(Path(folder))
    built = build(place / "records", place)
    for damage in built.damaged:
        warnings.warn(f"left out of the tables: {damage.reason}", stacklevel=2)
    cells = [row for one in built.boards for row in rows(one.records)]
    return pd.DataFrame(cells, columns=[name for name, *_ in COLUMNS])


def find_folder(folder: Path | None) -> Path:
    """`folder`. Raises UserError, naming those that are here, unless it holds records."""
    if folder is not None and (folder / "records").is_dir():
        return folder
    places = [path.parent for path in Path().glob("*/records") if path.is_dir()]
    here = sorted(str(place) for place in places if not (place / "run.json").is_file())
    known = f"choose from {', '.join(here)}" if here else "advbench evaluate --leaderboard DIR makes one"
    if folder is None:
        raise UserError(f"which leaderboard? {known}")
    raise UserError(f"{folder} is no leaderboard, since it holds no records: {known}")


def publish(record: Record, fates: Fates, folder: Path) -> Published:
    """Save `record` in the leaderboard `folder` and bring its files up to date.

    Any number of processes may publish at once. One of them builds and one waits to build next. The others return at
    once: the waiting process has yet to read the records, and will find theirs. So the files are complete when the
    last process has returned. Raises UserError (see `Record.save`).
    """
    check_folder(folder)
    path = record.save(folder, fates)
    with ExitStack() as turn:
        try:
            turn.enter_context(locked(folder / ".turn", timeout=0))
        except Held:
            return Published(path, ())
        with locked(folder / ".lock"):
            turn.close()
            built = _build(folder / "records", folder)
            return Published(path, tuple(one for one in built.damaged if one.path.parent == path.parent))


def find_record(folder: Path, text: str) -> Path:
    """The file of the record of the leaderboard `folder` whose id begins with `text`. Raises UserError."""
    files = {path.stem: path for path in record_files(folder / "records")}
    found = [key for key in files if text and key.startswith(text)]
    if len(found) != 1:
        fault = f"{text!r} begins several ids" if found else f"{folder} has no record {text!r}"
        choices = sorted(found or files)
        more = f" and {len(choices) - 5} more in {folder / 'records'}" if len(choices) > 5 else ""
        raise UserError(f"{fault}: choose from {', '.join(choices[:5])}{more}")
    return files[found[0]]


def find_shown(folder: Path, text: str) -> tuple[Path, Record, Fates]:
    """The record that `find_record` finds, its model as a notice names it, and its fates.

    Raises UserError where it is retired, or where another record supersedes it.
    """
    path = find_record(folder, text)
    record, fates = load_record(path)
    records, notices = load_records(path.parent)[0], load_notices(path.parent)[0]
    retired = {key: notice.retired for key, notice in notices.items() if notice.retired is not None}
    if record.id in retired:
        raise UserError(f"record {record.id} is retired: {retired[record.id]}")
    for other in records:
        if other.id not in retired and superseded([record, other]) == {record.id}:
            raise UserError(f"record {record.id} is superseded: name the one that replaces it, {other.id}")
    return path, named(record, notices.get(record.id)), fates


def retire(folder: Path, text: str, why: str) -> Built:
    """Take the record whose id begins with `text` out of the tables of the leaderboard `folder`, which say `why`.

    The record stays as it is, with a notice beside it. Raises UserError, also where `text` is no one's or several's.
    """
    return _notice(folder, text, retired=why)


def rename(folder: Path, text: str, name: str) -> Built:
    """Have the tables of the leaderboard `folder` call the model of the record whose id begins with `text` `name`.

    As `retire`.
    """
    return _notice(folder, text, name=name)


def check_folder(folder: Path) -> None:
    """Raise UserError for a run folder, whose records are of one model, and for one that has a page of its own."""
    if (folder / "run.json").is_file():
        raise UserError(f"{folder} is the folder of a run, not of a leaderboard: tables are written to another folder")
    page = folder / PAGE
    if page.exists() and not _is_generated(page):
        raise UserError(f"{page} was not made by advbench, and would be lost: move it, or name another folder")


def check(folder: Path) -> list[Damage]:
    """What is damaged in the leaderboard `folder`, and the generated files that do not match its records and notices.

    An SVG of the same numbers that another version of matplotlib drew counts as a match.
    """
    records, fates, notices, found = _load(folder / "records")
    expected = render(records, notices, fates, about=(folder / ABOUT).is_file())
    again = f"run advbench leaderboard {folder}"
    for name, content in expected.items():
        path = folder / name
        if not path.is_file():
            found.append(Damage(path, f"{path} is missing: {again}"))
        elif not same(path.read_bytes(), content):
            found.append(Damage(path, f"{path} does not match the records: {again}"))
    for path in sorted([*folder.glob("*.md"), *folder.glob(PAGE)]):
        if path.name not in expected and _is_generated(path):
            more = "" if path.name == PAGE else " with its .csv and .svg"
            found.append(Damage(path, f"{path} has no records behind it: remove it{more}"))
    return found


def render(
    records: Iterable[Record],
    notices: Mapping[str, Notice] | None = None,
    fates: Mapping[str, Fates] | None = None,
    *,
    about: bool = False,
) -> dict[str, bytes]:
    """The content of each generated file by its name: three files for each dataset and norm, and one page of them all.

    `fates`: those of the records, by id. The page compares only records whose fates are there. `about`: whether there
    is a README.md to link.
    """
    boards = _boards(records, notices or {})
    return {**_tables(boards, about), **_page(boards, fates or {}, about)}


def _boards(records: Iterable[Record], notices: Mapping[str, Notice]) -> dict[str, Board]:
    """The board of each dataset and norm, by the name of its files."""
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        groups.setdefault(_name(record), {})[record.id] = record
    return {name: board(group.values(), notices) for name, group in sorted(groups.items())}


def _name(record: Record) -> str:
    return f"{slug(record.dataset.name)}-{record.norm}"


def _tables(boards: Mapping[str, Board], about: bool) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name, one in boards.items():
        files[f"{name}.svg"] = to_svg(one)
        files[f"{name}.md"] = to_markdown(one, about=about).encode()
        files[f"{name}.csv"] = to_csv(one.records).encode()
    return files


def _page(boards: Mapping[str, Board], fates: Mapping[str, Fates], about: bool) -> dict[str, bytes]:
    return {PAGE: to_html(boards, fates, about=about).encode()} if boards else {}


def _is_generated(path: Path) -> bool:
    return path.read_text(encoding="utf-8", errors="replace").startswith((GENERATED, HEAD))


def _load(folder: Path) -> tuple[list[Record], dict[str, Fates], dict[str, Notice], list[Damage]]:
    """The sound records below `folder`, their fates by id, the sound notices, and the damaged ones of both."""
    measured, damaged = load_with_fates(folder)
    notices, unsound = load_notices(folder)
    return [record for record, _ in measured], {one.id: fates for one, fates in measured}, notices, damaged + unsound


def _notice(folder: Path, text: str, **said: str) -> Built:
    """Write what is `said` of a record into its notice, and bring the tables up to date."""
    path = find_record(folder, text)
    load_record(path)
    with locked(folder / ".lock"):
        write_notice(path, **said)
        return _build(folder / "records", folder)


def _build(records_folder: Path, out_folder: Path) -> Built:
    """Write the page and the tables of all boards."""
    records, fates, notices, damaged = _load(records_folder)
    boards, about = _boards(records, notices), (out_folder / ABOUT).is_file()
    written = []
    for name, content in {**_tables(boards, about), **_page(boards, fates, about)}.items():
        path = out_folder / name
        if not (path.is_file() and same(path.read_bytes(), content)):
            write_atomic(path, content)
        written.append(path)
    return Built(tuple(written), tuple(boards.values()), tuple(damaged))


make_callable(__name__, build_frame)
