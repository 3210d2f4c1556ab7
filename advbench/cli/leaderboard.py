"""`advbench leaderboard`: the tables of a folder of records, and notices that retire or rename one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli import complete, options
from advbench.cli.console import Screen
from advbench.errors import UserError, unknown

if TYPE_CHECKING:
    from advbench.leaderboard import Built

FORMS = {"build": "DIR build", "retire": "DIR retire ID --why TEXT", "rename": "DIR rename ID NAME"}


def command(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="the folder that evaluate --leaderboard DIR writes to")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ACTION...",
            help="build, retire ID, or rename ID NAME [default: build]",
            autocompletion=complete.words(*FORMS),
        ),
    ] = None,
    why: Annotated[
        str | None,
        typer.Option("--why", metavar="TEXT", help="why a record is retired, as the page says it"),
    ] = None,
    as_json: options.Json = False,
    config: options.Flags = None,
) -> None:
    """Write tables, figures and pages from the records in DIR.

    There is a page for each dataset and norm.

    \b
    build            only that
    retire ID        leave a record out; the page says --why
    rename ID NAME   what the tables call the record's model

    ID is the record's, or its first digits. The record itself stays as it is: a notice lies beside it, and deleting the
    notice takes it back.
    """
    with Screen(as_json=as_json).ready() as screen:
        leaderboard(folder, words or ["build"], why=why, screen=screen)


def leaderboard(
    folder: Path | None, words: Sequence[str], *, why: str | None = None, screen: Screen | None = None
) -> Built:
    """Do what `words` say and print what was written. Raises UserError for wrong ones, and after all for damage."""
    screen = screen or Screen()
    import advbench.leaderboard as boards

    action, *rest = words
    if action not in FORMS:
        raise unknown("action", action, FORMS)
    place = boards.find_folder(folder)
    boards.check_folder(place)
    if len(rest) != len(FORMS[action].partition(" --")[0].split()) - 2 or (action == "retire") != (why is not None):
        raise UserError(f"{action}: write advbench leaderboard {FORMS[action]}")
    if not all(text.strip() for text in (*rest, *([why] if why is not None else []))):
        raise UserError(f"{action}: ID, NAME and TEXT must not be empty")
    if action == "retire":
        built = boards.retire(place, rest[0], why or "")
    elif action == "rename":
        built = boards.rename(place, *rest)
    else:
        built = boards.build(place / "records", place)
    show(built, screen)
    if built.damaged:
        files = "1 file was" if len(built.damaged) == 1 else f"{len(built.damaged)} files were"
        raise UserError(f"{files} left out of the tables: damaged, as said above")
    return built


def show(built: Built, screen: Screen) -> None:
    """Print each page that was written and what it shows, and warn of what was left out."""
    for damage in built.damaged:
        screen.warn(f"left out of the tables: {damage.reason}")
    pages = [path for path in built.files if path.suffix == ".md"]
    rows = []
    for page, board in zip(pages, built.boards, strict=True):
        counts = {
            "rankings": len(board.tables),
            "ranked": sum(len(table.ranked) for table in board.tables),
            "below": sum(len(table.below) for table in board.tables),
            "hidden": len(board.repeated) + len(board.superseded) + len(board.retired),
        }
        if screen.as_json:
            screen.json({"page": str(page), "dataset": board.dataset, "norm": board.norm, **counts})
        rows.append((str(page), *map(str, counts.values())))
    screen.table(("page", "rankings", "ranked", "below the line", "not shown"), rows)
    screen.note("beside each page lie its numbers as .csv and its figure as .svg")
    if rows:
        screen.note(f"{built.files[-1]} has all of them, to be opened in a browser")
