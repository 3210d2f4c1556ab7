"""`advbench leaderboard`: the tables of a folder of records, notices that retire or rename one of them, and others'
adversarial images that lower one."""

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

FORMS = {
    "build": "DIR build",
    "retire": "DIR retire ID --why TEXT",
    "rename": "DIR rename ID NAME",
    "add": "DIR add FILE --to ID",
}


def command(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="the folder that evaluate --leaderboard DIR writes to")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ACTION...",
            help="build, retire ID, rename ID NAME, or add FILE [default: build]",
            autocompletion=complete.words(*FORMS),
        ),
    ] = None,
    why: Annotated[
        str | None,
        typer.Option("--why", metavar="TEXT", help="why a record is retired, as the page says it"),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="ID", help="the record that add lowers")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="SPEC",
            help="for add: where the model is now [default: where the record says]",
            autocompletion=complete.models,
        ),
    ] = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    config: options.Flags = None,
    trust_pickle: options.TrustPickle = False,
    trust_code: options.TrustCode = False,
) -> None:
    """Write tables, figures and pages from the records in DIR.

    There is a page for each dataset and norm.

    \b
    build            only that
    retire ID        leave a record out; the page says --why
    rename ID NAME   what the tables call the record's model
    add FILE         lower --to by adversarial images made elsewhere

    ID is the record's, or its first digits. The record itself stays as it is: a notice lies beside it, and deleting the
    notice takes it back. What add writes is a new record in its place, if the model itself confirms that images fall:
    FILE is as for evaluate --adversarials.
    """
    with options.consent(context).given(), Screen(as_json=as_json).ready() as screen:
        if (words or [])[:1] == ["add"]:
            from advbench.cli.add import add

            check_words(words or [], why=why, to=to)
            argv = context.obj or ()
            add(folder, Path((words or [])[1]), to or "", model=model, device=device, screen=screen, argv=argv)
            return
        if (model, device) != (None, "auto"):
            raise UserError("--model and --device are for add: advbench leaderboard DIR add FILE --to ID")
        leaderboard(folder, words or ["build"], why=why, to=to, screen=screen)


def leaderboard(
    folder: Path | None,
    words: Sequence[str],
    *,
    why: str | None = None,
    to: str | None = None,
    screen: Screen | None = None,
) -> Built:
    """Do what `words` say and print what was written. Raises UserError for wrong ones, and after all for damage."""
    screen = screen or Screen()
    import advbench.leaderboard as boards

    action, *rest = check_words(words, why=why, to=to)
    place = boards.find_folder(folder)
    boards.check_folder(place)
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


def check_words(words: Sequence[str], *, why: str | None, to: str | None) -> Sequence[str]:
    """`words`. Raises UserError unless they and the flags are one of FORMS."""
    action, *rest = words
    if action not in FORMS:
        raise unknown("action", action, FORMS)
    form, _, flag = FORMS[action].partition(" --")
    given = [name for name, text in (("why TEXT", why), ("to ID", to)) if text is not None]
    if len(rest) != len(form.split()) - 2 or given != ([flag] if flag else []):
        raise UserError(f"{action}: write advbench leaderboard {FORMS[action]}")
    if not all(text.strip() for text in (*rest, why, to) if text is not None):
        raise UserError(f"{action}: ID, NAME, TEXT and FILE must not be empty")
    return words


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
