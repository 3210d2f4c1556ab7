"""From attack names and `--set` fields to the attacks that run, and what the record says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from advbench.attacks.engine import Attack
from advbench.attacks.named import named, with_settings
from advbench.errors import UserError, unknown
from advbench.record import AttackRef


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
    sets = [(one, named(one, norm)) if isinstance(one, str) else (one.name, (one,)) for one in asked]
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
