"""From the names that a user gives to the measurements to compare."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from advbench.compare.comparable import KINDS, protocol
from advbench.eps import Eps
from advbench.errors import UserError
from advbench.files import plain_path
from advbench.record import (
    Fates,
    Record,
    load_record,
    load_records,
    notice_of,
    record_files,
    record_path,
    superseded,
)

PLACES = (Path("leaderboards"), Path())  # where `evaluate` saves the records of models without a run folder
FORMS = "a run folder, a record's .json, the first digits of a record's id, or the spec of a model measured before"


@dataclass(frozen=True)
class Measured:
    """One record, its fates, and its file.

    `retired`: why a notice retires it, empty where none does. `again`: when it was last measured again with the same
    outcome, ISO 8601; empty where no notice says so.
    """

    record: Record
    fates: Fates
    path: Path
    retired: str = ""
    again: str = ""

    @property
    def date(self) -> str:
        """When it was last measured, ISO 8601, UTC."""
        return max(self.record.environment.date, self.again)


@dataclass(frozen=True)
class Side:
    """One name of the command line and all measurements that it may stand for, among which `align` chooses.

    `listed`: whether a comma list named each of its models by itself. `others`: in words, how else its models were
    measured, of which nothing is compared.
    """

    label: str
    units: tuple[Measured, ...]
    listed: bool = False
    others: tuple[str, ...] = ()

    @property
    def ids(self) -> frozenset[str]:
        """The ids of its records, which are equal where the same weights were measured with the same outcome."""
        return frozenset(unit.record.id for unit in self.units)


def read_side(text: str, places: Sequence[Path] = PLACES) -> Side:
    """The measurements that `text` names.

    `text` is also their label, but a single record is labelled with its model and id. The forms of `text`:
    - a record file;
    - a run folder: its records in `folder/records` or, if it has none, its records in the leaderboards in `places`;
    - a folder of run folders: the records of all of them;
    - an id, or at least its first 4 digits, in one of `places` or a folder of `runs`, or below a folder: `LB/1a2b`;
    - the spec of a model, such as robustbench:NAME, or the name given to it, that has records in `places`;
    - a comma list of these: several trainings of one recipe, taken together.

    Records that are superseded, or of weights that others replaced, are left out (see `align`). Notices rename and
    retire (see `measured`). Of a run folder only those of the weights that it holds count, as far as its card says.
    Raises UserError for damaged records or notices, and when there are no measurements, or none of these weights.
    """
    _check_said(text)
    if "," in text and not Path(text).exists() and not _by_spec(text, places):
        parts = [read_side(part.strip(), places) for part in text.split(",") if part.strip()]
        if not parts:
            raise UserError(f"{text!r} names nothing: write {FORMS}")
        units = {unit.record.id: unit for part in parts for unit in part.units}
        newest = {unit.record.id for unit in _of_newest_weights(units.values())}
        if older := [f"{unit.record.model.title} ({key[:8]})" for key, unit in units.items() if key not in newest]:
            raise UserError(
                f"{text} names one model in several states, of which the newest counts: leave out {_few(older)}"
            )
        return Side(text, tuple(units.values()), listed=all(len(_untrained(part.units)) <= 1 for part in parts))
    path = Path(text)
    found: dict[Path, list[Path]] = {}  # by the folder in which the models lie
    if path.is_dir():
        folders = [path] if _files(path) else sorted(path.iterdir())
        found = {folder: files for folder in folders if (files := _files(folder))}
    if not found:
        one = [path] if path.is_file() and path.suffix == ".json" else _ids(text, places)
        if one:
            unit = measured(one[0], places)
            return Side(f"{unit.record.model.title} ({unit.record.id[:8]})", (unit,))
        found = {path: files} if (files := _by_spec(text, places)) else {}
    if not found:
        if path.suffix == ".json":
            raise UserError(f"there is no file {text}")
        hint = f": measure it with advbench evaluate --model {quote(text)}" if path.is_dir() else f": write {FORMS}"
        raise UserError(f"there is no record of {text!r}{hint}")
    here = [unit for folder, files in found.items() for unit in _of_weights_in(folder, files, places)]
    return Side(text, _of_newest_weights(_current(here)))


def read_some(text: str, dataset: str | None, norm: str | None) -> Side:
    """As `read_side`, but only the measurements on `dataset` and in `norm`, where these are given."""
    side = read_side(text)
    units = tuple(
        unit for unit in side.units if dataset in (None, unit.record.dataset.name) and norm in (None, unit.record.norm)
    )
    if not units:
        asked = " and ".join(word for word in (dataset, norm) if word)
        choices = sorted({f"{unit.record.dataset.name} in {unit.record.norm}" for unit in side.units})
        raise UserError(f"there is no record of {text} on {asked}: choose from {', '.join(choices)}")
    return replace(side, units=units)


def measured(file: Path, places: Iterable[Path] = PLACES) -> Measured:
    """The record `file`, as notices rename and retire it.

    A notice lies beside it, or beside its copy in one of `places` or in another leaderboard in the current folder.
    """
    record, fates = load_record(file)
    boards = [*places, *sorted(path.parent for path in Path().glob("*/records"))]
    beside = [file.with_name(f"{record.id}.json"), *(record_path(board, record) for board in boards)]
    notices = [one for path in beside if (one := notice_of(path)) is not None]
    name = next((one.name for one in notices if one.name is not None), None)
    if name is not None:
        record = record.model_copy(update={"model": record.model.model_copy(update={"name": name})})
    retired = next((one.retired for one in notices if one.retired is not None), "")
    return Measured(record, fates, file, retired, max((one.again or "" for one in notices), default=""))


def find_record(text: str, places: Sequence[Path] = PLACES) -> Path:
    """The one record file that `text`, a path or the first digits of an id, names. Raises UserError."""
    _check_said(text)
    path = Path(text)
    if path.is_file():
        return path
    found = _ids(text, places)
    if not found:
        inside = [str(file) for file in _files(path)]
        if inside:
            raise UserError(f"{text} holds records, of which one has to be named: choose from {', '.join(inside)}")
        forms = "write a record's .json, or the first digits of its id"
        raise UserError(f"there is no {'file' if path.suffix == '.json' else 'record'} {text!r}: {forms}")
    return found[0]


def align(sides: Sequence[Side], free: Collection[str] = ()) -> list[Side]:
    """Each side with only the measurements to compare: those made alike, one for each model, the newest.

    Measurements are made alike if images, norm, attacks and engine are the same. Where all sides have several such
    protocols in common, the one with the newest measurement of the first side is taken; where they have none in common,
    one that is the same but for the kinds in `free`; where they have none of these either, the newest of each side.

    A model is one run folder or, without a recipe, one spec. Where the folder was trained again, or the spec came to
    stand for other weights, those that were measured last count, and measurements of others do not. A weight file in a
    run folder (its last epoch, another network) counts only if the folder itself was not measured.

    Raises UserError when a side mixes models that differ by more than their seed.
    """
    sides = [replace(side, units=_of_newest_weights(side.units)) for side in sides]
    for left_out in ((), free, KINDS):
        common = set.intersection(*({_protocol(unit.record, left_out) for unit in side.units} for side in sides))
        if common:
            break
    first = max((unit for unit in sides[0].units if _protocol(unit.record, left_out) in common), key=_age)
    chosen = []
    for side in sides:
        among = [unit for unit in side.units if _protocol(unit.record, left_out) == _protocol(first.record, left_out)]
        wanted = _protocol(max(among, key=_age).record)
        alike = sorted((unit for unit in side.units if _protocol(unit.record) == wanted), key=_age)
        models = {unit.record.model.identity: unit for unit in alike}
        left = {
            f"{unit.record.attack_name} on {unit.record.n} images": None
            for unit in side.units
            if _protocol(unit.record) != wanted
        }
        units = tuple(sorted(models.values(), key=lambda unit: unit.record.id))
        kept = replace(side, units=units, others=tuple(left))
        recipes = _recipes([unit.record for unit in kept.units], side.listed)
        if len(recipes) > 1:
            specs = [unit.record.model.spec for unit in kept.units]
            names = [
                unit.record.id if specs.count(spec) > 1 else spec for spec, unit in zip(specs, kept.units, strict=True)
            ]
            raise UserError(
                f"{side.label} holds models that differ by more than their seed ({_few(sorted(names))}): "
                "name one of them"
            )
        chosen.append(kept)
    return chosen


def labelled(sides: Sequence[Side]) -> list[Side]:
    """The aligned sides, each labelled with the name that was given to its models, if any, and no two others alike."""
    found: list[Side] = []
    for side in sides:
        names = {unit.record.model.name for unit in side.units}
        label = (names.pop() if len(names) == 1 else None) or side.label
        if any(one.label == label and one.ids != side.ids for one in found):
            label = f"{label} ({', '.join(sorted(key[:8] for key in side.ids))})"
        found.append(replace(side, label=label))
    return found


def common_grid(units: Sequence[Measured]) -> list[Eps]:
    """The eps at which all were measured, as the first one writes them."""
    return [
        Eps(point.eps_text, point.eps)
        for point in units[0].record.curve
        if all(unit.record.at(point.eps) for unit in units)
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], "..."] if len(names) > 5 else names)


def _files(folder: Path) -> list[Path]:
    return record_files(folder / "records")


def _ids(text: str, places: Iterable[Path]) -> list[Path]:
    """The record file whose id begins with `text`: in the folder before the last slash, else in `places` and runs."""
    folder, prefix = Path(text).parent, Path(text).name
    places = (*sorted(Path("runs").glob("*")), *places) if folder == Path() else (folder,)
    if not re.fullmatch(r"[0-9a-f]{4,16}", prefix):
        return []
    found = {file.stem: file for place in places for file in _files(place) if file.stem.startswith(prefix)}
    if len(found) > 1:
        raise UserError(f"{prefix!r} begins several ids: choose from {', '.join(sorted(found))}")
    return list(found.values())


def _check_said(text: str) -> None:
    """Raise UserError for an empty name, such as that of an unset variable, which would be the current folder."""
    if not text.strip():
        raise UserError(f"{text!r} names nothing: write {FORMS}")


def _by_spec(text: str, places: Iterable[Path]) -> list[Path]:
    spec = plain_path(text) if Path(text).exists() else text
    found: dict[str, Path] = {}
    for place in places:
        files = {file.stem: file for file in _files(place)}
        records, damaged = load_records(place / "records")
        for damage in damaged:
            if _may_be_of(damage.path, {text, spec}):
                raise UserError(damage.reason)
        for record in records:
            notice = notice_of(files[record.id])
            name = notice.name if notice is not None and notice.name is not None else record.model.name
            if text == name or record.model.spec in (spec, text):
                found[record.id] = files[record.id]
    return list(found.values())


def _may_be_of(path: Path, names: Collection[str]) -> bool:
    """Whether the damaged record file `path` calls its model by one of `names`, or does not tell."""
    try:
        model = json.loads(path.read_bytes())["model"]
        return model["spec"] in names or model["name"] in names
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True


def _of_weights_in(folder: Path, files: Iterable[Path], places: Sequence[Path]) -> list[Measured]:
    """The measurements `files`, but of the model of the run in `folder` only those of the weights that it holds now."""
    units = [measured(file, places) for file in files]
    now = _weights_in(folder)
    kept = [one for one in units if now is None or one.record.model.file or one.record.model.weights_sha256 == now]
    if not any(map(_is_run, kept)) and any(map(_is_run, units)):
        raise UserError(
            f"{folder} was trained again after it was measured: measure it anew with advbench evaluate --model "
            f"{quote(str(folder))}"
        )
    return kept


def _weights_in(folder: Path) -> str | None:
    """The hash of the tensors that the run in `folder` deploys; None if it is no run, or its card does not say."""
    try:
        return str(json.loads((folder / "run.json").read_bytes())["weights"]["model.safetensors"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _current(units: Iterable[Measured]) -> tuple[Measured, ...]:
    by_id = {unit.record.id: unit for unit in units}
    outdated = superseded(unit.record for unit in by_id.values() if not unit.retired)
    return tuple(unit for key, unit in by_id.items() if key not in outdated)


def _protocol(record: Record, left_out: Collection[str] = ()) -> tuple[str, ...]:
    return tuple(text for kind, text in protocol(record).items() if kind not in left_out)


def _of_newest_weights(units: Iterable[Measured]) -> tuple[Measured, ...]:
    ordered = sorted(units, key=lambda unit: (not unit.record.model.file, _age(unit)))
    newest = {_training(unit.record): _network(unit.record) for unit in ordered}
    return tuple(unit for unit in ordered if _network(unit.record) == newest[_training(unit.record)])


def _network(record: Record) -> tuple[object, ...]:
    """A key for what was measured: the weights, and the code and normalisation around them."""
    model = record.model
    return model.weights_sha256, model.code_sha256, model.mean, model.std


def _age(unit: Measured) -> tuple[str, str]:
    return unit.date, unit.record.id


def _training(record: Record) -> str:
    """A key for one training: its folder; the spec if it is no run's."""
    folder = Path(record.model.spec.removesuffix(record.model.file))
    return record.model.spec if record.model.trained is None else f"run {folder}"


def _is_run(unit: Measured) -> bool:
    return unit.record.model.trained is not None and not unit.record.model.file


def _untrained(units: Iterable[Measured]) -> set[str]:
    """The specs of the models that are no runs, of which no recipe is known."""
    return {unit.record.model.spec for unit in units if unit.record.model.trained is None}


def _recipes(records: Sequence[Record], listed: bool) -> set[tuple[object, ...]]:
    """What the seeds of one side have in common, one if they are of one recipe.

    Of unknown recipes that were not `listed`, only the spec tells. Records from before the recipe was recorded without
    its seed tell the method, the norm and the eps alone.
    """
    every = [record.model.trained for record in records]
    whole = all(trained is None or trained.series_sha256 for trained in every)
    found: set[tuple[object, ...]] = set()
    for record, trained in zip(records, every, strict=True):
        unknown = () if listed else (record.model.spec,)
        known = (trained.method, trained.norm, trained.eps, whole and trained.series_sha256) if trained else unknown
        found.add((record.model.arch, repr(sorted(record.model.settings.items())), *known))
    return found
