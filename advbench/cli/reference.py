"""The reference of one entry as lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from advbench.defaults.signatures import shown
from advbench.defaults.wording import facts, how, paragraphs

WIDTH = 80
_LABEL = 12  # columns of the labels


def lines(found: Mapping[str, Any], width: int = WIDTH) -> list[str]:
    """What `describe` found, at most `width` columns wide: facts, settings, an example and the details."""
    text = [found["name"], *_wrapped(found["summary"], width), ""]
    for label, words in facts(found):
        pad = _LABEL if len(label) < _LABEL else len(label) + 1
        text += _wrapped(words, width, first=label.ljust(pad), rest=" " * _LABEL)
    text += _settings(found.get("settings", ()), how(found), width)
    text += ["", "example", *_wrapped(found["example"], width, first="  ", rest="    ")]
    for prose, part in paragraphs(found["details"]) if found.get("details") else ():
        text.append("")
        text += _wrapped(part, width) if prose else [one for line in part.split("\n") for one in _formula(line, width)]
    return text


def _settings(settings: Sequence[Mapping[str, Any]], how: str, width: int) -> list[str]:
    """Name, default and meaning of each setting, in columns."""
    if not settings:
        return []
    rows = [(one.get("flag", one["name"]), _default(one), f"{one['meaning']} [{one['type']}]") for one in settings]
    left = max(len(name) for name, _, _ in rows)
    middle = min(max(len(default) for _, default, _ in rows), 12)
    indent = " " * (left + middle + 6)
    text = ["", f"settings ({how})"]
    for name, default, meaning in rows:
        text += _wrapped(meaning, width, first=f"  {name.ljust(left)}  {default.ljust(middle)}  ", rest=indent)
    return text


def _default(one: Mapping[str, Any]) -> str:
    return shown(one["default"]) if "default" in one else "(required)"


def _wrapped(text: str, width: int, *, first: str = "", rest: str = "") -> list[str]:
    whole = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return whole or [first.rstrip()]


def _formula(line: str, width: int) -> list[str]:
    """A line that is kept as it is if it fits."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return [line] if len(line) <= width else _wrapped(line, width, rest=indent)
