"""`advbench list`: the names that other commands take, and what each is. Only the reference of an entry loads torch."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from advbench.cli import meant, options
from advbench.cli.complete import names, words
from advbench.cli.console import Screen
from advbench.defaults.listing import ALL, KINDS, listing
from advbench.errors import UserError


def command(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=", ".join(ALL), autocompletion=words(*ALL))] = None,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="one of that kind: its whole reference", autocompletion=names),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--filter", metavar="TEXT", help="only those with TEXT in their name or summary")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List methods, attacks, models, datasets, analyses and flags.

    With a KIND, list that kind in full. With a NAME too, say all about it: settings with their defaults, norms, source
    and an example, such as

    \b
      advbench list attacks pgd
      advbench list flags square-wins
    """
    with Screen(as_json=as_json).ready() as screen:
        if kind is not None and name is not None:
            if text is not None:
                raise UserError("--filter is for lists: leave it out, or leave out the NAME")
            describe(kind, name, screen)
            return
        if kind not in (None, *ALL) and (hint := meant.listed(str(kind))):
            raise UserError(f"unknown kind {kind!r}: write advbench {hint}")
        kinds = (kind,) if kind is not None else KINDS
        found = {name: listing(name, text) for name in kinds}
        if as_json:
            screen.json([{"list": name, **row} if kind is None else row for name in kinds for row in found[name]])
            return
        if text is not None and not any(found.values()):
            screen.say(f"no name or summary has {text!r} in it: advbench list {kind or 'KIND'} shows all")
            return
        for name in (name for name in kinds if found[name]):
            rows = [row for row in found[name] if kind is not None or row.get("kind") != "trained"]
            left = len(found[name]) - len(rows)
            wanted = f" --filter {shlex.quote(text)}" if text is not None else ""
            extra = f", and {left} trained ones: advbench list {name}{wanted}" if left else ""
            cells = [(str(row["name"]), *_worst(row), str(row["summary"])) for row in rows]
            columns = ("name", "at worst", "summary") if name == "flags" else ("name", "summary")
            screen.table(columns, cells, title=f"{name} ({len(rows)}{extra})")
            screen.say("")
        about = f"advbench list {kind}" if kind is not None else "advbench list KIND"
        screen.say(f"{about} NAME says all about one")
        if kind is None:
            screen.say("advbench list flags says what each flag means")


def describe(kind: str, name: str, screen: Screen) -> None:
    """Print the reference of one entry. Raises UserError, with near names, if there is none."""
    from advbench.cli.reference import lines
    from advbench.defaults.describing import describe

    found = describe(kind, name)
    if screen.as_json:
        screen.json(found)
        return
    for line in lines(found):
        screen.say(line)


def _worst(row: dict[str, object]) -> list[str]:
    """The worst severity that a flag can have, as a cell; no cell for other kinds."""
    return [word for word in ("broken", "suspect", "note") if word in str(row.get("severity"))][:1]
