"""Resolves attack names and `--set` fields to the attacks that run and their references in the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advbench import consent
from advbench.attacks.base import make, taken, with_settings
from advbench.engine.attack import Attack
from advbench.eps import NORMS
from advbench.errors import UserError, unknown
from advbench.record import ESCALATION, AttackRef
from advbench.registry import entries, find


def resolve(
    asked: Sequence[Any], settings: Mapping[str, Any], *, norm: str, classes: int
) -> tuple[list[Attack], list[AttackRef]]:
    """The single attacks of all named sets, made for the norm and the number of classes, and their references.

    The attacks to which a set escalates follow its own, and their references say so. A setting goes to every attack
    that has a field of that name. Raises UserError for an unknown attack, for what is no attack, for a setting that no
    attack has, for a value that does not fit its field, for an attack that does not support the norm, and for a set
    that escalates beside other attacks.
    """
    members: list[tuple[str, Attack, dict[str, Any]]] = []
    for one in asked:
        if not isinstance(one, str):
            members.append(((member := taken(one)).name, member, {}))
            continue
        members += [(one, member, {}) for member in make(one, norm)]
        if then := find("attacks", one).about.get("escalates"):
            if len(asked) > 1:
                raise UserError(f"{one} decides by itself whether {then} follows: ask for it alone, or for {then}")
            with consent.also(code=True).given():  # what names it is code that runs already
                members += [(one, member, {"stage": ESCALATION}) for member in make(then, norm)]
    fields = {field for _, member, _ in members for field in member.setting_names()}
    for key in settings:
        if key not in fields:
            if having := having_setting(key):
                names = "+".join(dict.fromkeys(name for name, _, _ in members))
                raise UserError(f"{names} has no setting {key!r}: attacks that have it are {', '.join(having)}")
            raise unknown("attack setting", key, fields)
    attacks, refs = [], []
    for name, member, stage in members:
        if norm not in member.norms and norm in NORMS:
            raise UserError(
                f"{member.name} has no form for norm {norm}: choose from {', '.join(member.norms)}, or an attack that "
                f"has one for {norm}, such as {one_in(norm)}"
            )
        made = with_settings(member, dict(settings)).for_model(norm, classes)
        attacks.append(made)
        told = {**made.settings(), "set": name, **stage}
        refs.append(AttackRef(name=made.name, version=str(made.version), settings=told))
    return attacks, refs


def one_in(norm: str) -> str:
    """A registered attack that has a form for `norm`: autoattack if all of it has, else the first single one."""
    if all(norm in member.norms for member in make("autoattack", norm)):
        return "autoattack"
    return next(name for name, kind in _kinds() if norm in kind.norms)


def having_setting(field: str) -> list[str]:
    """The registered single attacks that have the setting `field`, sorted by name."""
    return [name for name, kind in _kinds() if field in kind.setting_names()]


def _kinds() -> Iterator[tuple[str, type[Attack]]]:
    """The registered attacks that are a class, by name."""
    for name, entry in entries("attacks").items():
        maker = entry.load()
        if isinstance(maker, type) and issubclass(maker, Attack):
            yield name, maker
