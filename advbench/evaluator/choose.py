"""From attack names and `--set` fields to the attacks that run, and what the record says of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from advbench.attacks.engine import Attack, members
from advbench.errors import UserError, unknown
from advbench.record import AttackRef
from advbench.registry import find


def choose(
    attack: str | Attack | Sequence[str | Attack], settings: dict[str, Any], *, norm: str, classes: int
) -> tuple[list[Attack], list[AttackRef]]:
    """The single attacks of all named sets, made for the norm and the number of classes, and their references.

    A setting goes to every attack that has the field. Raises UserError for an unknown name, for a field that
    none of them has or a value that does not fit it, and for a norm an attack has no form for.
    """
    asked = [attack] if isinstance(attack, str | Attack) else list(attack)
    if not asked:
        raise UserError("no attack was named: choose at least one (advbench list attacks)")
    sets = [(one, _create(one, norm)) if isinstance(one, str) else (one.name, (one,)) for one in asked]
    plain = [(name, member) for name, of_set in sets for member in of_set]
    fields = {f.name for _, member in plain for f in dataclasses.fields(member) if f.init} - {"name"}
    for key in settings:
        if key not in fields:
            raise unknown("attack setting", key, fields)
    attacks, refs = [], []
    for name, member in plain:
        made = with_settings(member, settings).for_model(norm, classes)
        attacks.append(made)
        refs.append(AttackRef(name=made.name, version=str(made.version), settings={**made.settings(), "set": name}))
    return attacks, refs


def _create(name: str, norm: str) -> tuple[Attack, ...]:
    """The members of the registered attack or set `name`; some sets differ from norm to norm."""
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
    return dataclasses.replace(attack, **changes)
