"""The page of commands: their flags, read from the command line itself."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer

from advbench.cli import app
from reference import markdown as md

_DEFAULT = re.compile(r"\s*\[default: ([^\]]*)\]")


def page() -> str:
    group: Any = typer.main.get_command(app)
    parts = [_command(name, command) for name, command in group.commands.items()]
    return "\n\n".join([md.contents("commands", group.commands), *parts])


def _command(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join([f"advbench {name}", *(str(one.metavar) for one in arguments if one.metavar), "[OPTIONS]"])
    parts = [md.heading(2, f"`{name}`", f"commands-{name}"), f"```console\n$ {usage}\n```", *_help(command.help)]
    parts.append(md.described(_term(name, one, [str(one.metavar or one.name)]) for one in arguments))
    panels: dict[str, list[Any]] = {}
    for one in options:
        panels.setdefault(getattr(one, "rich_help_panel", None) or "", []).append(one)
    for panel, those in panels.items():
        parts += [f"**{panel}**"] if panel else []
        parts.append(md.described(_term(name, one, [*one.opts, *one.secondary_opts]) for one in those))
    return "\n\n".join(filter(None, parts))


def _help(text: str | None) -> list[str]:
    """Paragraphs of a command's help; those that the help keeps as they are stay so."""
    found = []
    for part in inspect.cleandoc(text or "").split("\n\n"):
        kept = part.startswith("\b") or part.startswith("  ")
        words = part.removeprefix("\b").strip("\n")
        found.append(f"```text\n{inspect.cleandoc(words)}\n```" if kept else md.prose(" ".join(words.split())))
    return found


def _term(command: str, one: Any, names: list[str]) -> tuple[str, str]:
    """A flag with its names and what it takes, and its meaning."""
    text = one.help or ""
    default = found[1] if (found := _DEFAULT.search(text)) else _plain(one)
    first, *others = sorted(names, key=len, reverse=True)
    spelled = ", ".join([md.anchored(first, f"{command}-{one.name}"), *(f"`{other}`" for other in others)])
    takes = f" `{one.metavar}`" if one.metavar and one.param_type_name == "option" else ""
    kind = f" [default: {md.prose(default)}]{{.kind}}" if default else ""
    return f"{spelled}{takes}{kind}", md.prose(_DEFAULT.sub("", text))


def _plain(one: Any) -> str:
    """The default of a flag as one would type it; empty where there is none."""
    value = one.default
    return "" if value is None or isinstance(value, bool) or callable(value) or value == [] else str(value)
