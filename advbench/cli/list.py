"""`advbench list`: the names that other commands take. Loads no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from advbench.cli import options
from advbench.cli.complete import words
from advbench.cli.console import Screen
from advbench.defaults.listing import KINDS, listing


def command(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=", ".join(KINDS), autocompletion=words(*KINDS))
    ] = None,
    text: Annotated[
        str | None, typer.Option("--filter", metavar="TEXT", help="only those with TEXT in their name or summary")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List methods, attacks, models, datasets and analyses.

    With a KIND, list that kind in full.
    """
    with Screen(as_json=as_json).ready() as screen:
        kinds = (kind,) if kind is not None else KINDS
        found = {name: listing(name, text) for name in kinds}
        if as_json:
            screen.json([{"list": name, **row} if kind is None else row for name in kinds for row in found[name]])
            return
        for name in kinds:
            rows = [row for row in found[name] if kind is not None or row.get("kind") != "trained"]
            left = len(found[name]) - len(rows)
            extra = f", and {left} trained ones: advbench list {name}" if left else ""
            cells = [(str(row["name"]), str(row["summary"])) for row in rows]
            screen.table(("name", "summary"), cells, title=f"{name} ({len(rows)}{extra})")
            if name != kinds[-1]:
                screen.say("")
