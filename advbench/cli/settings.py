"""Parsing of `--set FIELD=VALUE`, for attacks and analyses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from advbench.errors import UserError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WORDS = {"true": True, "false": False, "none": None}


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Fields and values of FIELD=VALUE texts; later ones replace earlier ones. Raises UserError for other forms."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().replace(".", "_").replace("-", "_").isidentifier():
            raise UserError(f"--set {text!r} is not FIELD=VALUE: write for example steps=40 or step_size=2/255")
        found[name.strip()] = parse_value(value.strip())
    return found


def parse_value(text: str) -> Any:
    """An int ("40"), float ("0.1", "1e-3", "8/255"), bool ("true", "false"), None ("none"), else the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(r"[-+]?\d{1,300}", text):  # a longer one is a text, which no number's field takes
        return int(text)
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if fraction := re.fullmatch(rf"({_NUMBER})/({_NUMBER})", text):
        if float(fraction[2]) == 0:
            raise UserError(f"--set value {text!r} divides by zero")
        return float(fraction[1]) / float(fraction[2])
    return text


def written_settings(texts: Iterable[str]) -> dict[str, str]:
    """The fields of FIELD=VALUE texts with their values as they are written."""
    return {text.partition("=")[0].strip(): text.partition("=")[2].strip() for text in texts}


def split_names(texts: Iterable[str]) -> list[str]:
    """The names in comma lists, each once, in order. Raises UserError for an empty name."""
    names = [name.strip() for text in texts for name in text.split(",")]
    if not all(names):
        raise UserError(f"{','.join(texts)!r} is not a comma list of names: write for example pgd,square")
    return list(dict.fromkeys(names))
