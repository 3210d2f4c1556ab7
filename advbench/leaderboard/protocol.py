"""The protocol of a measurement: all that must be equal for two models to be ranked together.

It is the images (by their hash), the norm, the attacks with their settings, the kind of engine, and whether the model
may reject an input. It is not the versions of engine and attacks, the precision of the search, the seed or the eps.

Two lists of attacks are the same if their names, the sets they came with, and their settings are, in any order. A
setting that is off (null, false or 0) counts as absent, because attacks of older versions have fewer settings. The fp32
recheck after a search in bf16 is how APGD-T is run there, and no attack of its own; without APGD-T in the set it makes
the set stronger, and counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advbench.record import RECHECK_SET, AttackRef, Record
from advbench.registry import entries

FEWEST_IMAGES = 1000  # or all, where the split has fewer
_OWN = "advbench"
_AUTOATTACK = {"apgd-ce", "apgd-t", "fab-t", "square"}
_AUTOATTACK_BUDGET = {"steps": 100, "n_queries": 5000}
_AUTOATTACK_TARGETS = {"l1": 5}  # 9 in other norms
_FROM_OUTSIDE = {"code_sha256", "library"}


@dataclass(frozen=True)
class Protocol:
    """`key` tells protocols apart; `attacks`, `images` and `engine` say in words what they are.

    `settings` are those of each attack. `strength` orders protocols: infinite for AutoAttack at its usual budget, else
    the number of gradient steps on an image, where 50 queries of an attack without gradients count as one: so
    AutoAttack weighs them, whose members have 100 steps or 5,000 queries. An attack from outside has none.
    """

    key: str
    attacks: str
    images: str
    n: int
    engine: str
    settings: tuple[tuple[str, Mapping[str, Any]], ...]
    strength: float
    rejects: bool

    @property
    def title(self) -> str:
        """Such as "autoattack on the first 1,000 test images"."""
        by = "" if self.engine == _OWN else f", run by {self.engine}"
        return f"{self.attacks} on {self.images}{by}{', models may reject' if self.rejects else ''}"

    def order(self, enough: bool) -> tuple[object, ...]:
        """A key that sorts the strongest first, of equally strong ones those on `enough` images, and then the most."""
        return (-self.strength, not enough, -self.n, -len(self.settings), self.engine != _OWN, self.key)


def protocol(record: Record) -> Protocol:
    """The protocol of `record`."""
    attacks = _asked(record)
    listed = sorted((ref.name, _canonical(_on(ref))) for ref in attacks)
    rejects = record.model.abstain is not None
    parts = [record.dataset.images_sha256, record.norm, listed, record.engine.name, rejects]
    return Protocol(
        key=hashlib.sha256(_canonical(parts).encode()).hexdigest()[:8],
        attacks="+".join(dict.fromkeys(str(ref.settings.get("set", ref.name)) for ref in attacks)),
        images=_images(record),
        n=record.n,
        engine=record.engine.name,
        settings=tuple((ref.name, _on(ref)) for ref in attacks),
        strength=_strength(attacks, record),
        rejects=rejects,
    )


def hand_picked(record: Record) -> bool:
    """Whether the images were listed one by one, and are not the first ones of the split."""
    indices = record.dataset.indices
    return not isinstance(indices, str) and sorted(indices) != list(range(len(indices)))


def size_of_split(record: Record) -> int | None:
    """The number of images of the split that was measured, None for data from outside."""
    size = _about(record.dataset.name).get("sizes", {}).get(record.dataset.split)
    return size if isinstance(size, int) else None


def usual_eps(dataset: str, norm: str) -> str | None:
    """The eps at which models of `dataset` are usually ranked in `norm`."""
    return _about(dataset).get("reference_eps", {}).get(norm)


def _asked(record: Record) -> list[AttackRef]:
    """The attacks without the recheck, where that adds none."""
    attacks = [ref for ref in record.attack if ref.settings.get("set") != RECHECK_SET]
    return attacks if any(ref.name == "apgd-t" for ref in attacks) else list(record.attack)


def _on(ref: AttackRef) -> dict[str, Any]:
    """The settings that are not off."""
    return {name: value for name, value in sorted(ref.settings.items()) if value}


def _strength(attacks: list[AttackRef], record: Record) -> float:
    classes = _about(record.dataset.name).get("num_classes", math.inf)
    targets = min(_AUTOATTACK_TARGETS.get(record.norm, 9), classes - 1)
    least = {**_AUTOATTACK_BUDGET, "n_targets": targets}
    attacks = [ref for ref in attacks if not ref.escalation]  # which runs on some models alone
    members = [ref for ref in attacks if ref.name in _AUTOATTACK]
    in_full = all(
        _number(ref, name, low) >= low for ref in members for name, low in least.items() if _on(ref).get(name)
    )
    if {ref.name for ref in members} == _AUTOATTACK and in_full:
        return math.inf
    queries_a_step = _AUTOATTACK_BUDGET["n_queries"] / _AUTOATTACK_BUDGET["steps"]
    return sum(
        (_number(ref, "steps", 0) + _number(ref, "n_queries", 0) / queries_a_step)
        * max(1, _number(ref, "n_targets", 1))
        * max(1, _number(ref, "restarts", 1))
        for ref in attacks
        if not _FROM_OUTSIDE & ref.settings.keys()  # whose steps may be anything
    )


def _number(ref: AttackRef, name: str, default: float) -> float:
    value = ref.settings.get(name, default)
    return value if isinstance(value, int | float) else default


def _images(record: Record) -> str:
    indices, n = record.dataset.indices, record.n
    what = f"{record.dataset.split} images"
    if n == size_of_split(record):
        return f"all {n:,} {what}"
    if hand_picked(record):
        return f"{n:,} hand-picked {what}"
    if isinstance(indices, str) and indices.startswith("random:"):
        return f"{n:,} {what} drawn by seed {indices.split(':')[1]}"
    return f"the first {n:,} {what}"


def _about(dataset: str) -> dict[str, Any]:
    entry = entries("data").get(dataset.partition(":")[0])
    return entry.about if entry else {}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
