"""Which measurements may be compared: those of the same images and norm, by the same attacks and engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from advbench.record import ESCALATED, RECHECK_SET, AttackRef, DatasetRef, Record

KINDS = ("images", "norms", "attacks", "engines")


def allowed_kinds(*, unpaired: bool, different_attacks: bool) -> frozenset[str]:
    """The kinds of difference that these options allow."""
    return frozenset(KINDS[:1] if unpaired else ()) | frozenset(KINDS[1:] if different_attacks else ())


def protocol(record: Record) -> dict[str, str]:
    """For each of `KINDS`, what must be the same. The recheck in fp32 goes with the precision, not with the attacks."""
    attacks = [one.model_dump(mode="json") for one in _attacks(record)]
    external = sorted(one.sha256 for one in record.external)
    return {
        "images": record.dataset.images_sha256,
        "norms": record.norm,
        "attacks": json.dumps([attacks, external, record.model.abstain], sort_keys=True),
        "engines": f"{record.engine.name} {record.engine.version}",
    }


def differences(record: Record, base: Record) -> dict[str, str]:
    """The kinds in which the two were measured differently, each in words: `record`'s; `base`'s."""
    ours, theirs = protocol(base), protocol(record)
    words = {
        "images": f"different images ({_images(record.dataset)}; {_images(base.dataset)})",
        "norms": f"different norms ({record.norm}; {base.norm})",
        "attacks": f"different attacks ({_changes(record, base)})",
        "engines": f"different engines ({theirs['engines']}; {ours['engines']})",
    }
    return {kind: words[kind] for kind in KINDS if ours[kind] != theirs[kind]}


def reported(record: Record, base: Record) -> list[str]:
    """What may differ and only has to be told, in words."""
    ours, theirs = _circumstances(base), _circumstances(record)
    return [f"{name} ({theirs[name]}; {ours[name]})" for name in ours if ours[name] != theirs[name]]


def _circumstances(record: Record) -> dict[str, Any]:
    device = (record.environment.__pydantic_extra__ or {}).get("device")
    engine = record.engine
    return {
        "slots": engine.slots,
        "precision": engine.precision,
        "curve": engine.curve,
        "seed": record.seed,
        "escalated": "yes" if any(flag.name == ESCALATED for flag in record.flags) else "no",
        "device": device or "unknown",
    }


def of_set(record: Record) -> list[str]:
    """The names by which the attacks of `record` were asked for: of the set where they came with one."""
    return list(dict.fromkeys(str(one.settings.get("set", one.name)) for one in _attacks(record)))


def _attacks(record: Record) -> list[AttackRef]:
    return [one for one in record.attack if one.settings.get("set") != RECHECK_SET]


def _images(dataset: DatasetRef) -> str:
    chosen = dataset.indices if isinstance(dataset.indices, str) else f"{len(dataset.indices)} chosen images"
    return f"{dataset.name}, {chosen}"


def _changes(record: Record, base: Record) -> str:
    """In which of their attacks two records differ: in names, or else in versions and settings."""
    new, old = _attacks(record), _attacks(base)
    found = []
    sets = ["+".join(of_set(one)) for one in (record, base)]
    if [one.name for one in new] != [one.name for one in old]:
        names = ["+".join(one.name for one in attacks) for attacks in (new, old)]
        found.append("; ".join(names if sets[0] == sets[1] else sets))
    else:
        for one, other in zip(new, old, strict=True):
            if one.version != other.version:
                found.append(f"version of {one.name} {one.version}; {other.version}")
            found += [f"{change} of {one.name}" for change in _settings(one.settings, other.settings)]
    if record.external != base.external:
        found.append(f"{len(record.external)}; {len(base.external)} files of others' adversarial images")
    if record.model.abstain != base.model.abstain:
        kinds = {"last": "a model that may reject (--abstain last)", None: "one that may not"}
        found.append(f"{kinds[record.model.abstain]}; {kinds[base.model.abstain]}")
    return ", ".join(found)


def _settings(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    names = [name for name in {**old, **new} if new.get(name) != old.get(name) or (name in new) != (name in old)]
    return [f"{name} {_shown(new, name)}; {_shown(old, name)}" for name in names]


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "none"
