"""`advbench evaluate --again RECORD`: repeat a measurement and compare the outcomes. Loads torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advbench import consent
from advbench.cli.console import Screen
from advbench.cli.keep import check_baseline, save, save_baseline, search_progress
from advbench.cli.stop import Stop
from advbench.compare import find_record, whereabouts
from advbench.defaults.target import load_target, pick_device
from advbench.eps import Eps
from advbench.errors import UserError
from advbench.evaluator import Journal, Settings, evaluate
from advbench.evaluator.adversarials import Adversarials, read_adversarials
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.identity import certify_settings
from advbench.files import check_writable
from advbench.leaderboard import check_folder
from advbench.record import NOT_PROBED, RECHECK_SET, Record, load_record

if TYPE_CHECKING:
    import torch

    from advbench.checkpoint import Loaded
    from advbench.data.dataset import Dataset


def repeat(
    path: Path,
    *,
    model: str | None = None,
    device: str = "auto",
    leaderboard: Path | None = None,
    baseline: Path | None = None,
    says: Mapping[str, Sequence[str]] | None = None,
    screen: Screen | None = None,
    argv: Sequence[str] = (),
    adversarials: Sequence[Path] = (),
) -> bool:
    """Repeat the measurement of a record, show how it compares, and return whether it is the same.

    `path`: its file, or the first digits of its id. `model` is where the weights are now, if they were moved.
    `baseline`: a file that becomes this measurement. `says`: names of the record that --attack, --arch and --dataset
    repeat, so that their code may run. `adversarials`: the files of adversarial images that the record credits. Raises
    UserError when the record is damaged, or when the model, images, attacks or files are not those that the record was
    made with.
    """
    path = find_record(str(path))
    with consent.reading(path, model).given():
        return _repeat(path, model, device, leaderboard, baseline, says or {}, screen or Screen(), argv, adversarials)


def _repeat(
    path: Path,
    model: str | None,
    device: str,
    leaderboard: Path | None,
    baseline: Path | None,
    says: Mapping[str, Sequence[str]],
    screen: Screen,
    argv: Sequence[str],
    adversarials: Sequence[Path],
) -> bool:
    was, fates = load_record(path)
    others = credited(was, adversarials)
    held = {"--attack": attack_names(was), "--arch": [was.model.arch], "--dataset": [was.dataset.name]}
    for flag, names in says.items():
        for name in names:
            if name not in held[flag]:
                raise UserError(f"--again repeats its record, whose {flag} is {','.join(held[flag])}, not {name}")
    if leaderboard is not None:
        check_folder(leaderboard)
        check_writable(leaderboard / "records")
    if baseline is not None:
        check_baseline(baseline)
    place = pick_device(device)
    with Stop() as stop:
        loaded, data = subject(path, was, model, place, screen=screen, stop=stop)
        names, changed = asked(was, data.num_classes)
        screen.say(f"repeating {was.id}: {loaded.spec}, {'+'.join(names)}, {was.norm}, {was.n} images, on {place}")
        with screen.bar(was.id) as bar:
            settings = Settings(
                attack=names, attack_settings=changed, attack_budget=was.attack_budget, norm=was.norm,
                seed=was.seed, device=place,
                eps=[Eps(point.eps_text, point.eps) for point in was.curve], precision=was.engine.precision,
                slots=was.engine.slots, curve=was.engine.curve,
                engine="own" if was.engine.name == "advbench" else "reference",
                indices=was.dataset.indices if isinstance(was.dataset.indices, str) else None,
                probes=all(flag.name != NOT_PROBED for flag in was.flags), adversarials=others,
                name=was.model.name, command=("advbench", *argv), **certify_settings(was),
            )  # fmt: skip
            result = evaluate(loaded, data, settings, journal=Journal(stop=stop, progress=search_progress(bar)))
    now = result.record
    changed_fates = int(np.sum(result.fates.fell != fates.fell))
    # Not by the ids, which cover the proofs too: these have a limit of time, verdicts have none.
    same = now.question == was.question and changed_fates == 0 and np.array_equal(result.fates.by, fates.by)
    where = save(now, result.fates, leaderboard, publish=True, screen=screen) if leaderboard is not None else None
    if baseline is not None:
        save_baseline(now, result.fates, baseline, screen)
    if screen.as_json:
        screen.json({"record": was.id, "again": now.id, "same": same, "moved": changed_fates, "n": was.n})
        return same
    rows = [
        (old.eps_text, f"{100 * old.accuracy:.2f}", f"{100 * new.accuracy:.2f}")
        for old, new in zip(was.curve, now.curve, strict=True)
    ]
    screen.table(("eps", "then %", "now %"), rows)
    screen.say(verdict(was, now, changed_fates, same=same))
    if where is not None:
        screen.say(f"record {where}")
    return same


def subject(
    path: Path, was: Record, model: str | None, device: torch.device, *, screen: Screen, stop: Stop
) -> tuple[Loaded, Dataset]:
    """The model and the images of the record `was` in the file `path`; `model`: where the weights are now.

    Raises UserError where they are not those that the record was made with.
    """
    with screen.fetching(stop.check) as fetching:
        spec = model or whereabouts(path, was)
        target = load_target(
            spec, dataset=was.dataset.name, arch=arch_of(spec, was),
            norm=was.norm, device=device, mean=was.model.mean, std=was.model.std, abstain=was.model.abstain,
            fetching=fetching,
        )  # fmt: skip
    data = images(target.data, was)
    if target.loaded.weights_sha256 != was.model.weights_sha256:
        raise UserError(
            f"the weights of {target.loaded.spec} are not those of record {was.id}: name the right ones by --model"
        )
    if was.model.code_sha256 not in (None, target.loaded.code_sha256):
        raise UserError(f"the code of {target.loaded.spec} has changed since record {was.id}: it is another model now")
    if data.images_sha256 != was.dataset.images_sha256:
        raise UserError(f"the images of {was.dataset.name} here are not those of record {was.id}")
    return target.loaded, data


def credited(record: Record, paths: Sequence[Path]) -> tuple[Adversarials, ...]:
    """The files of adversarial images that `record` credits, which are `paths` in any order. Raises UserError."""
    given = {one.sha256: one for one in read_adversarials(paths)}
    lacking = [one.name for one in record.external if one.sha256 not in given]
    if lacking:
        raise UserError(f"--again needs the files that record {record.id} credits: --adversarials {', '.join(lacking)}")
    if len(given) > len(record.external):
        raise UserError(f"--again repeats record {record.id}, which credits {len(record.external)} of these files")
    return tuple(replace(given[one.sha256], name=one.name) for one in record.external)


def verdict(was: Record, now: Record, changed_fates: int, *, same: bool) -> str:
    """How the second measurement compares with the first, in one line."""
    if same:
        return f"the same: record {was.id}, all {was.n} verdicts"
    reasons = []
    if now.question != was.question:
        for name, old, new in (
            ("engine", was.engine, now.engine),
            ("attacks", was.attack, now.attack),
            ("architecture", was.model.arch, now.model.arch),
        ):
            if old != new:
                reasons.append(f"the {name} changed since")
    if now.environment.advbench != was.environment.advbench:
        reasons.append(f"advbench was {was.environment.advbench}, is {now.environment.advbench}")
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"not the same: {changed_fates} of {was.n} verdicts differ{why}; record {now.id}, was {was.id}"


def images(data: Dataset, record: Record) -> Dataset:
    """The images of the split `data` that the record was measured on. Raises UserError."""
    from advbench.defaults.choice import choose_rows

    indices = record.dataset.indices
    if isinstance(indices, str):
        subset, _, count = indices.rpartition(":")
        rows, _, _ = choose_rows(data, int(count), subset)
        return data.subset(rows)
    return data.subset(list(indices))


def asked(record: Record, classes: int) -> tuple[list[str], dict[str, Any]]:
    """The names and settings that make the attacks of a record. Raises UserError if the names mean others now."""
    # A search in bf16 adds the recheck itself.
    named = [ref for ref in record.attack if ref.settings.get("set") != RECHECK_SET]
    names = attack_names(record)
    if record.engine.name != "advbench":
        return names, {}
    attacks, usual = resolve(names, {}, norm=record.norm, classes=classes)
    if [ref.name for ref in usual] != [ref.name for ref in named]:
        raise UserError(f"record {record.id}: {'+'.join(names)} is another set of attacks now")
    settings: dict[str, Any] = {}
    for attack, then, now in zip(attacks, named, usual, strict=True):
        changed = {key: value for key, value in then.settings.items() if now.settings.get(key) != value}
        if "code_sha256" in changed:
            raise UserError(f"record {record.id}: the code of {now.name} has changed since")
        fields = set(attack.setting_names())  # the rest is read from the attack, whose record will show a difference
        fields -= {attack.main_count} if record.attack_budget else set()
        settings |= {key: value for key, value in changed.items() if key in fields}
    return names, settings


def attack_names(record: Record) -> list[str]:
    """What `--attack` was when the record was made."""
    sets = [str(ref.settings.get("set", ref.name)) for ref in record.attack]
    return [name for name in dict.fromkeys(sets) if name != RECHECK_SET]


def arch_of(spec: str, record: Record) -> str | None:
    """The architecture, for files of weights, most of which do not name it; else None."""
    from advbench.models.state_files import SUFFIXES
    from advbench.models.torchscript import is_torchscript

    path = Path(spec)
    is_weights = path.is_file() and path.suffix.lower() in SUFFIXES and not is_torchscript(path)
    return record.model.arch if is_weights else None
