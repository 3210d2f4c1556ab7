"""Makes attacks by name, from the registry or from user code, and applies settings given as text or values."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from advbench.attacks.external import FORMS, attack_of, name_of
from advbench.engine.attack import Attack, members
from advbench.errors import UserError, shortened
from advbench.recipe.fields import converted
from advbench.registry import find, parameters


def make(name: str, norm: str) -> tuple[Attack, ...]:
    """The attack `name`, or the members of the set `name`, which may depend on `norm`.

    `module:name` is user code: an entry of that module, an Attack class, a function that returns an Attack, or what
    `external.attack_of` takes. Raises UserError for an unknown name and for code that returns no attack.
    """
    entry = find("attacks", name)
    maker = entry.load()
    if (itself := attack_of(name, maker, entry.set)) is not None:
        return (itself,)
    known = parameters(maker)
    given = {"norm": norm} if "norm" in known else {}
    if "name" in known and "name" not in entry.set:
        given["name"] = name
    made = []
    for one in members(entry.create(**given)):
        if (found := attack_of(name, one)) is None:
            raise UserError(f"{name} made a {type(one).__name__}: {FORMS}")
        made.append(found)
    return tuple(made)


def taken(thing: Any) -> Attack:
    """`thing`, made in Python, as an attack named after its class or function. UserError if it is none."""
    found = attack_of(name_of(thing), thing)
    if found is None:
        what = f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
        raise UserError(f"{what} is no attack: {FORMS}")
    return found


def with_settings(attack: Attack, settings: dict[str, Any]) -> Attack:
    """`attack` with those of `settings` that it has; the others are ignored. UserError for an invalid value of any."""
    kinds = get_type_hints(type(attack), include_extras=True)
    fields = {name: settings.get(name, getattr(attack, name)) for name in attack.setting_names()}
    for name, given in fields.items():
        value, kind = given, kinds[name]
        if name not in settings and not isinstance(value, int | float):
            continue
        if isinstance(value, str) and "," in value and kind is not str:
            value = value.split(",")
        try:
            fields[name] = converted(kind, value)
        except ValueError as error:
            raise UserError(f"{attack.name}: {name}={shortened(given)}: {error}") from error
    return dataclasses.replace(attack, **fields)
