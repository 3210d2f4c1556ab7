"""Resolves attack names and `--set` fields to the attacks that run and their references in the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advbench.attacks.base import make, taken, with_settings
from advbench.engine.attack import Attack
from advbench.errors import unknown
from advbench.record import AttackRef


def resolve(
    asked: Sequence[Any], settings: Mapping[str, Any], *, norm: str, classes: int
) -> tuple[list[Attack], list[AttackRef]]:
    """The single attacks of all named sets, made for the norm and the number of classes, and their references.

    A setting goes to every attack that has a field of that name. Raises UserError for an unknown attack, for what is no
    attack, for a setting that no attack has, for a value that does not fit its field, and for an
    attack that does not support the norm.
    """
    members = []
    for one in asked:
        of_set = make(one, norm) if isinstance(one, str) else (taken(one),)
        members += [(one if isinstance(one, str) else member.name, member) for member in of_set]
    fields = {field for _, member in members for field in member.setting_names()}
    for key in settings:
        if key not in fields:
            raise unknown("attack setting", key, fields)
    attacks, refs = [], []
    for name, member in members:
        made = with_settings(member, dict(settings)).for_model(norm, classes)
        attacks.append(made)
        refs.append(AttackRef(name=made.name, version=str(made.version), settings={**made.settings(), "set": name}))
    return attacks, refs
