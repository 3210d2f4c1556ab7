"""The commands by which two sides that were measured differently come to be measured alike."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from advbench.compare.comparable import differences, of_set
from advbench.compare.explain import whereabouts
from advbench.compare.sides import Measured
from advbench.eps import CORRUPTIONS
from advbench.record import ATTACK_BUDGET, RECHECK_SET, External, Record
from advbench.registry import entries

BY_BUDGET = ("steps", "n_queries", "iterations")  # the settings that --attack-budget decides
_ELSEWHERE = "<where its weights are>"


def remedies(base: Measured, others: Sequence[Measured]) -> str:
    """What to do where `others` were measured differently than `base`: measure again, with the commands.

    Only a newer engine and newer attacks make a baseline old, which is then renewed. In all else the others have to be
    measured as it was.
    """
    old = [unit for unit in others if not _upgraded(unit.record, base.record)]
    found = [f"Measure alike by {evaluation(base, old)}"] if old else []
    if any(_newer(unit.record, base.record) for unit in others):
        found.append(f"{'renew' if found else 'Renew'} the baseline by {renewal(base)}")
    return ", ".join(found)


def renewal(unit: Measured) -> str:
    """The command that measures a baseline again as it is done now."""
    file = Path("baseline.json") if unit.path.stem == unit.record.id else unit.path  # records are never edited
    again = ["advbench", "evaluate", "--again", unit.path, "--model", _place(unit), "--save-baseline", file]
    again += [word for one in unit.record.external for word in ("--adversarials", _file(one))]
    return shlex.join(map(str, again))


def evaluation(base: Measured, others: Sequence[Measured]) -> str:
    """The command that measures the models of `others` as `base` was, as far as its record and its command say it."""
    record = base.record
    indices = record.dataset.indices
    subset, recorded = "", _recorded(record)
    if isinstance(indices, tuple):
        subset = recorded.get("--subset", ["<file of the baseline's positions>"])[-1]
    elif indices.startswith("random:"):
        subset = indices.rpartition(":")[0]
    pairs: list[tuple[str, object]] = [("--model", place) for place in dict.fromkeys(map(_place, others))]
    archs = {unit.record.model.arch for unit in others if Path(_place(unit)).is_file()}
    pairs += [("--arch", arch) for arch in archs if len(archs) == 1 and arch in entries("models")]
    read = {(unit.record.model.mean, unit.record.model.std) for unit in others}
    if len(read) == 1 and (statistics := read.pop()) != (None, None):
        pairs += zip(("--mean", "--std"), (",".join(map(str, numbers or ())) for numbers in statistics), strict=True)
    pairs += [("--abstain", record.model.abstain)] if record.model.abstain else []
    pairs += [("--dataset", record.dataset.name), ("--attack", ",".join(of_set(record)))]
    pairs += [("--set", text) for text in _settings(record, [unit.record for unit in others], recorded)]
    pairs += [("--attack-budget", record.attack_budget)] if record.attack_budget else []
    if record.norm != CORRUPTIONS:
        pairs += [("--norm", record.norm), ("--eps", ",".join(point.eps_text for point in record.curve))]
    pairs.append(("-n", record.n))
    pairs += [("--subset", subset)] if subset else []
    pairs += [("--adversarials", _file(one)) for one in record.external]
    pairs += [("--engine", "reference")] if record.engine.name != "advbench" else []
    return shlex.join(["advbench", "evaluate", *(str(word) for pair in pairs for word in pair)])


def _upgraded(record: Record, base: Record) -> bool:
    """Whether the two differ in nothing but that `record` was measured by a newer engine or newer attacks."""
    if not _newer(record, base) or _newer(base, record):
        return False
    ours, theirs = (one.model_copy(update={"attack": _without_versions(one)}) for one in (record, base))
    return set(differences(ours, theirs)) <= {"engines"}


def _newer(record: Record, base: Record) -> bool:
    """Whether the engine of `record`, or an attack that both have, has a higher version. Others are not newer."""
    if record.engine.name != base.engine.name:
        return False
    then = {one.name: one.version for one in base.attack}
    pairs = [(one.version, then.get(one.name, one.version)) for one in record.attack]
    pairs.append((record.engine.version, base.engine.version))
    return any(_number(ours) > _number(theirs) for ours, theirs in pairs)


def _without_versions(record: Record) -> tuple[Any, ...]:
    return tuple(one.model_copy(update={"version": ""}) for one in record.attack)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _place(unit: Measured) -> str:
    """The spec of the model, or a gap to fill where its weights are not there any more."""
    spec = whereabouts(unit.path, unit.record)
    return spec if ":" in spec or Path(spec).exists() else _ELSEWHERE


def _file(external: External) -> str:
    return f"<the file {external.name}>"


def _recorded(record: Record) -> dict[str, list[str]]:
    """The values of the flags in the command that made `record`; nothing where it only repeated another record."""
    words = record.environment.command
    if words[:2] != ("advbench", "evaluate") or "--again" in words:
        return {}
    found: dict[str, list[str]] = {}
    split = [part for word in words[2:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for flag, value in pairwise(split):
        if flag.startswith("-"):
            found.setdefault(flag, []).append(value)
    return found


def _settings(record: Record, others: Sequence[Record], recorded: dict[str, list[str]]) -> list[str]:
    """FIELD=VALUE texts: those of the command that made `record`, and what `others` have set differently.

    A setting goes to every attack that has it. So one in which the attacks of `record` differ comes from their set.
    """
    found = {text.partition("=")[0].strip(): text for text in recorded.get("--set", [])}
    without = {"set", "stage", ATTACK_BUDGET, *(BY_BUDGET if record.attack_budget else ())}
    pairs = [pair for one in record.attack if one.settings.get("set") != RECHECK_SET for pair in one.settings.items()]
    without |= {name for name, value in pairs if any(name == same and value != other for same, other in pairs)}
    for other in others:
        theirs = {one.name: one.settings for one in other.attack}
        for one in record.attack:
            for name, value in one.settings.items():
                if name not in without and one.name in theirs and theirs[one.name].get(name) != value:
                    word = str(value).lower() if value is None or isinstance(value, bool) else value
                    found.setdefault(name, f"{name}={word}")
    return list(found.values())
