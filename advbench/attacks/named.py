"""Attacks by the names of the registry, with settings as a command line has them."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from advbench.attacks.engine import Attack, members
from advbench.errors import UserError
from advbench.registry import find


def named(name: str, norm: str) -> tuple[Attack, ...]:
    """The registered attack `name`, or the members of that set; some sets differ from norm to norm. UserError for an
    unknown name."""
    entry = find("attacks", name)
    by_norm = "norm" in inspect.signature(entry.load()).parameters
    return members(entry.create(norm=norm) if by_norm else entry.create())


def with_settings(attack: Attack, settings: dict[str, Any]) -> Attack:
    """`attack` with those of `settings` that it has. Raises UserError for a value of the wrong kind."""
    kinds = get_type_hints(type(attack))
    changes = {}
    for field in dataclasses.fields(attack):
        if field.name == "name" or not field.init or field.name not in settings:
            continue
        value, kind = settings[field.name], kinds[field.name]
        if isinstance(value, str) and "," in value and kind is not str:
            value = value.split(",")
        try:
            changes[field.name] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise UserError(f"{attack.name}: {field.name}={settings[field.name]!r}: {problem}") from error
        if isinstance(changes[field.name], float) and not math.isfinite(changes[field.name]):
            raise UserError(f"{attack.name}: {field.name} is {changes[field.name]}, but must be a finite number")
    return dataclasses.replace(attack, **changes)
