"""The reference of an entry in words, for a terminal and for pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from advbench.defaults.signatures import shown

_SHORT = 70  # characters: a line of prose is longer, except for the last
_LABELS = {
    "recipe": "own recipe",
    "num_classes": "classes",
    "shape": "images",
    "reference_eps": "usual eps",
    "maps": "feature maps",
}
_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "members": lambda found: ", ".join(
        one["name"] + (f" ({_text(one['settings'])})" if one["settings"] else "") for one in found["members"]
    ),
    "paper": lambda found: ", ".join(str(found[key]) for key in ("paper", "year", "arxiv") if found.get(key)),
    "cost": lambda found: f"an epoch costs {found['cost']:g} times one of pgd-at",
    "recipe": lambda found: _text(found["recipe"]),
    "cautions": lambda found: "; ".join(found["cautions"]),
    "shape": lambda found: "x".join(map(str, found["shape"])),
    "scale": lambda found: f"values from 0 to {found['scale']:g}",
    "argument": lambda found: f"{found['name']}:{found['argument']}",
    "published_clean_accuracy": lambda found: f"{found['published_clean_accuracy']:.2%}",
}


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `describe` says in short, in words, by labels; not settings, example and details."""
    presets = {f"preset {name}": fields for name, fields in found.get("presets", {}).items()}
    words = {key: _WORDS[key](found) if key in _WORDS else _text(value) for key, value in {**found, **presets}.items()}
    return [
        (_LABELS.get(key, key.replace("_", " ")), text)
        for key, text in words.items()
        if text and key not in ("kind", "name", "summary", "presets", "settings", "example", "details", "arxiv", "year")
    ]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={shown(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def paragraphs(text: str) -> list[tuple[bool, str]]:
    """A docstring in paragraphs and items of lists: whether each is prose, whose lines may be broken elsewhere."""
    found = []
    for part in re.split(r"\n\s*\n", text):
        lines = part.split("\n")
        formed = any(line.startswith(" ") or re.search(r"\S  +\S", line) for line in lines)
        short = any(len(line) < _SHORT for line in lines[:-1])
        if (formed or short) and not part.startswith("- "):
            found.append((False, part))
        else:
            found += [(True, " ".join(item.split())) for item in re.split(r"\n(?=- )", part)]
    return found


def how(found: Mapping[str, Any]) -> str:
    """How the settings of an entry are given."""
    if "form" in found:
        return f"--set model.{found['name']}={found['form']}"
    prefix = {"methods": "method.", "models": "model."}.get(found["kind"], "")
    return f"--set {prefix}NAME=VALUE"


def without_raises(text: str | None) -> str:
    """A docstring without its sentence on errors, which ends a paragraph."""
    return "\n\n".join(part.partition("Raises ")[0].rstrip() for part in (text or "").split("\n\n")).strip()
