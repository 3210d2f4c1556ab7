"""Makes attacks by name, from the registry or from user code, and applies settings given as text or values."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from advbench.attacks.function import Function, is_attack
from advbench.engine.attack import Attack, members
from advbench.errors import UserError, shortened
from advbench.recipe.fields import converted
from advbench.registry import find, parameters


def make(name: str, norm: str) -> tuple[Attack, ...]:
    """The attack `name`, or the members of the set `name`, which may depend on `norm`.

    `module:name` is user code: an entry of that module, an Attack class, a function that returns an Attack, or a
    function (model, x, y, eps) -> x_adv. Raises UserError for an unknown name and for code that returns no attack.
    """
    entry = find("attacks", name)
    maker = entry.load()
    if callable(maker) and is_attack(maker):
        return (Function.of(name, maker, entry.set),)
    known = parameters(maker)
    given = {"norm": norm} if "norm" in known else {}
    if "name" in known and "name" not in entry.set:
        given["name"] = name
    made = members(entry.create(**given))
    for one in made:
        if not isinstance(one, Attack):
            raise UserError(
                f"{name} made a {type(one).__name__}: an attack derives from advbench.engine.attack.Attack, or is "
                "a function (model, x, y, eps) -> x_adv"
            )
    return made


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
