"""Parsing of `--set FIELD=VALUE`, for attacks and analyses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, get_type_hints

from advbench.errors import UserError, unknown

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


def fit_settings(maker: Callable[..., Any], texts: Sequence[str], *, apart: Collection[str] = ()) -> dict[str, Any]:
    """FIELD=VALUE texts converted to the annotated types of the parameters of `maker`; names in `apart` are no fields.

    Raises UserError for an unknown field or a value of the wrong type.
    """
    from advbench.recipe.fields import converted

    hints = get_type_hints(maker, include_extras=True)
    known = [name for name in inspect.signature(maker).parameters if name not in apart]
    found = parse_settings(texts)
    written = {text.partition("=")[0].strip(): text.partition("=")[2].strip() for text in texts}
    for name in found:
        if not known:
            raise UserError(f"unknown setting {name!r}: there are none")
        if name not in known:
            raise unknown("setting", name, known)
        kind = hints.get(name, Any)
        try:
            found[name] = converted(kind, found[name])
        except ValueError:
            try:
                found[name] = converted(kind, written[name])
            except ValueError as error:
                raise UserError(f"--set {name}={written[name]}: {error}") from error
    return found


def split_names(texts: Iterable[str]) -> list[str]:
    """The names in comma lists, each once, in order. Raises UserError for an empty name."""
    names = [name.strip() for text in texts for name in text.split(",")]
    if not all(names):
        raise UserError(f"{','.join(texts)!r} is not a comma list of names: write for example pgd,square")
    return list(dict.fromkeys(names))
