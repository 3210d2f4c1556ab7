"""Settings as the code declares them: name, type with its range, default, and the meaning that a docstring gives.

A docstring says what a field or parameter means in the form "`name`: text", or "`one`, `two`: text" for several. The
text ends at the next such name, or with the paragraph.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_NAMES = r"`\w+`(?:(?:,| and|, and) `\w+`)*"
_HEAD = re.compile(rf"(?:(?<=^)|(?<=[.;,:)] )|(?<=- ))({_NAMES})(?: \(([^)]*)\))?: ")
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "none", Any: "anything"}
_NEVER_MEANT = 10**6  # an upper limit from here on only keeps mistakes out
_DIGITS = re.compile(r"\^\[0-9a-f\]\{(\d+)\}\$")
_IMPLIED = ("whole number", "number", "text")  # types that bounds and defaults show by themselves


def meanings(text: str | None) -> dict[str, str]:
    """The meaning of each name that a docstring explains."""
    found: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n|\n(?=- )", inspect.cleandoc(text or "")):
        words = " ".join(paragraph.split())
        heads = list(_HEAD.finditer(words))
        ends = [*(head.start() for head in heads[1:]), len(words)]
        for head, end in zip(heads, ends, strict=False):
            meaning = re.sub(r"(?<!\.)[;,.]$", "", words[head.end() : end].strip())  # "..." stays
            meaning = f"({head[2]}) {meaning}" if head[2] else meaning
            found |= dict.fromkeys(re.findall(r"`(\w+)`", head[1]), meaning)
    return found


def meaning_in(layers: Iterable[Any], name: str) -> str:
    """What the first docstring of `layers` (a class and its bases, or functions) that explains `name` says."""
    return next((text for one in layers if (text := meanings(one.__doc__).get(name))), "")


def written(kind: Any) -> str:
    """A type in words, such as "whole number from 1", "0 to 1", "mean | sum" or "list of numbers"."""
    if isinstance(kind, FieldInfo):
        return _bounded(written(kind.annotation), kind.metadata)
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        inside = [one for part in arguments[1:] for one in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return _bounded(written(arguments[0]), inside)
    if origin is Literal:
        return " | ".join(str(one) for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(written(one) for one in arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "table"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        several = [one for one in arguments if one is not Ellipsis]
        count = "list" if len(several) < len(arguments) or origin is not tuple else str(len(several))
        return (
            f"{count} of {_plural(written(several[0]))}"
            if count == "list"
            else f"{count} {_plural(written(several[0]))}"
        )
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "table"
    return str(getattr(kind, "__name__", kind)).lower()


def setting(name: str, kind: Any, default: Any, meaning: str) -> dict[str, Any]:
    """A setting as plain values; `default` is `inspect.Parameter.empty` where one must be given."""
    one: dict[str, Any] = {"name": name, "type": written(kind)}
    if default is not inspect.Parameter.empty:
        one["default"] = list(default) if isinstance(default, tuple) else default
    return {**one, "meaning": meaning}


def shown(value: Any) -> str:
    """A value as one writes it behind --set."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _bounded(base: str, metadata: Iterable[Any]) -> str:
    """`base` with the bounds in the metadata of a field or an annotation."""
    found = {
        name: getattr(one, name)
        for one in metadata
        for name in ("ge", "gt", "le", "lt", "pattern")
        if getattr(one, name, None) is not None
    }
    if digits := _DIGITS.fullmatch(str(found.get("pattern", ""))):
        return f"{digits[1]} hexadecimal digits"
    words = [f"from {found['ge']}" if "ge" in found else "", f"above {found['gt']}" if "gt" in found else ""]
    words += [f"to {found['le']}" if found.get("le", _NEVER_MEANT) < _NEVER_MEANT else ""]
    words += [f"below {found['lt']}" if found.get("lt", _NEVER_MEANT) < _NEVER_MEANT else ""]
    return " ".join([base, *(word for word in words if word)])


def _plural(words: str) -> str:
    first, _, rest = words.partition(" from ")
    if first.startswith("list of "):
        return words.replace("list of ", "lists of ", 1)
    return (f"{first}s" if first in ("number", "whole number", "text") else first) + (f" from {rest}" if rest else "")
