"""The text of --help: flags in groups, each with its default, in 80 columns. Loads neither torch nor rich."""

from __future__ import annotations

import textwrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

MAIN, DATA, MEASURE, OUTPUT, RUNNING = "Main options", "Model and data", "Measurement", "Output", "Running"
TRAINING, GATE = "Training", "Gate"  # of train, and of compare
GROUPS = (MAIN, DATA, TRAINING, MEASURE, GATE, OUTPUT, RUNNING)
_HARD = "\xa0"  # a space at which no line ends
_LONGEST = 26  # characters of a flag and its value beside which its text starts


class Command(TyperCommand):
    """A command whose help shows its flags by their `rich_help_panel`, in the order of GROUPS.

    Rich's own panels leave a flag's text 25 of 80 columns, and read brackets in it as markup.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(f"[{one.metavar}]" for one in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                group, name = "Arguments", str(param.metavar)
            else:
                group, name = _group(param), _flag(param)
            rows.setdefault(group, []).append((name, _text(param)))
        width = min(_LONGEST, max(len(name) for of_group in rows.values() for name, _ in of_group))
        for group in ("Arguments", *GROUPS):
            if rows.get(group):
                with formatter.section(group):
                    formatter.write("".join(_lines(name, text, width, formatter.width) for name, text in rows[group]))


class Commands(TyperGroup):
    """The program, whose help names its commands before its flags."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        with formatter.section("Options"):
            formatter.write_dl([param.get_help_record(ctx) for param in self.get_params(ctx)])


def _group(param: Any) -> str:
    own: str | None = getattr(param, "rich_help_panel", None)
    return own or (RUNNING if param.name == "help" else MAIN)


def _flag(param: Any) -> str:
    """Such as "-m, --model SPEC", the long form always in the same column."""
    short = [name for name in param.opts if not name.startswith("--")]
    long = [name for name in param.opts if name.startswith("--")]
    names = ", ".join([*short, *long]) if short else f"    {long[0]}"
    return names if param.is_flag else f"{names} {param.metavar}"


def _text(param: Any) -> str:
    """What the flag does, and its default unless it is off or the text says it."""
    text, default = param.help or "", param.default
    if default is None or default is False or "[default: " in text or param.param_type_name == "argument":
        return text
    return f"{text} [default: {default}]"


def _lines(name: str, text: str, width: int, room: int) -> str:
    """The flag, and its text beside it or, for a long flag, below it; no word is cut, nor a default that fits."""
    rest, bracket, default = text.partition("[default: ")
    if len(bracket + default) <= (room := room - width - 4):
        bracket, default = bracket.replace(" ", _HARD), default.replace(" ", _HARD)
    lines = textwrap.wrap(rest + bracket + default, room, break_long_words=False, break_on_hyphens=False) or [""]
    lines = [line.replace(_HARD, " ") for line in lines]
    head = [f"  {name}"] if len(name) > width else [f"  {name.ljust(width)}  {lines.pop(0)}".rstrip()]
    return "".join(f"{line}\n" for line in (*head, *(" " * (width + 4) + line for line in lines)))
