"""The record: counted from fates, named by a hash, and verified whenever it is read."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from advbench.aligned import plain_table
from advbench.eps import CORRUPTIONS, NORMS, Eps, parse_eps
from advbench.errors import UserError, must_be, reading
from advbench.files import locked, replace_file, write_atomic, write_new
from advbench.record.black_box import WINS, black_box_ahead
from advbench.record.fates import Fates, load_sealed
from advbench.record.parts import (
    ATTACK_BUDGET,
    AttackRef,
    Corruptions,
    Count,
    CurvePoint,
    DatasetRef,
    Engine,
    Environment,
    External,
    Flag,
    Id,
    ModelRef,
    Part,
    Sha256,
    Share,
)
from advbench.statistics import decimals, wilson

_WAITING = ".waiting.npz"
NOTICE = ".notice.json"  # follows the id in the name of a notice (see `notice`)

CURVE_COLUMNS = ("eps", "accuracy %", "95 % interval", "robust")
PROVED_COLUMNS = ("certified %", "gap")  # which follow where images were certified
NOT_PROBED = "not-probed"  # the flag of a record whose model was not probed
EXTERNAL = "external"  # the flag of a record that others' adversarial images lowered
ESCALATED = "escalated"  # the flag of a record whose attacks of the stage "escalation" ran


class Record(Part):
    """A measurement, made by `Record.of`. Accuracies, intervals and auc are fractions.

    - `schema`, `schema_version`: the version of this form.
    - `id`: the start of the hash of `question` and the verdicts; the name of the file.
    - `question`: the hash of all that decides the verdicts. Names, times, hardware and paths do not.
    - `model`: what was measured.
    - `dataset`: on which images.
    - `attack`: by which attacks, in their order.
    - `engine`: what ran them.
    - `norm`: of the perturbations.
    - `seed`: of all random numbers of the attacks.
    - `clean`: the accuracy without an attack.
    - `curve`: the accuracy at each eps, rising.
    - `median_norm`: the median size of the smallest known perturbation that fells an image; none where half stand.
    - `auc`: the area under the curve of accuracy against eps, divided by the range of eps.
    - `corruptions`: the errors of corruptions; absent for other attacks.
    - `flags`: reasons to doubt the number.
    - `seconds`: the time of the attacks, without start-up and loading.
    - `forwards` and `backwards`: passes of one image; none where nobody counted them.
    - `useful`: the share of the slots' steps that served an image, the others idled; none where slots were not used.
    - `external`: files of adversarial images made elsewhere, in their order.
    - `environment`: versions, hardware, date and command.
    - `supersedes`: the id of the record of the same model and images that this one replaces.
    """

    schema_version: Annotated[Literal[1, 2], Field(alias="schema")] = 2
    id: Id
    question: Sha256
    model: ModelRef
    dataset: DatasetRef
    norm: str
    attack: Annotated[tuple[AttackRef, ...], Field(min_length=1)]
    engine: Engine
    seed: int
    clean: Share
    curve: Annotated[tuple[CurvePoint, ...], Field(min_length=1)]
    median_norm: Annotated[float, Field(ge=0)] | None
    auc: Share
    corruptions: Corruptions | None = None
    flags: tuple[Flag, ...] = ()
    seconds: Annotated[float, Field(ge=0)]
    forwards: Count | None = None
    backwards: Count | None = None
    useful: Share | None = None
    external: tuple[External, ...] = ()
    environment: Environment
    supersedes: Id | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.norm not in (*NORMS, CORRUPTIONS):
            raise ValueError(f"norm must be one of {', '.join((*NORMS, CORRUPTIONS))}")
        if (self.norm == CORRUPTIONS) != (self.corruptions is not None):
            raise ValueError(f"norm {CORRUPTIONS} and the errors of corruptions go together")
        if any(low.eps >= high.eps for low, high in zip(self.curve, self.curve[1:], strict=False)):
            raise ValueError("eps must rise along the curve")
        for point in self.curve:
            if parse_eps(point.eps_text, self.norm).value != point.eps:
                raise ValueError(f"eps_text {point.eps_text!r} is not eps {point.eps!r}")
            if point.n != self.dataset.count:
                raise ValueError("n must be the number of images")
        if len({one.name for one in self.external}) < len(self.external):
            raise ValueError("external must have different names")
        if self.supersedes == self.id:
            raise ValueError("a record cannot supersede itself")
        return self

    @classmethod
    def of(
        cls,
        fates: Fates,
        *,
        model: ModelRef,
        dataset: DatasetRef,
        norm: str,
        eps: Sequence[Eps],
        attack: Sequence[AttackRef],
        engine: Engine,
        seed: int,
        environment: Environment,
        corruptions: Corruptions | None = None,
        flags: Sequence[Flag] = (),
        seconds: float = 0.0,
        forwards: int | None = None,
        backwards: int | None = None,
        useful: float | None = None,
        external: Sequence[External] = (),
        supersedes: str | None = None,
    ) -> Record:
        """The record of a finished evaluation, whose accuracies, auc and median_norm are counted from `fates`.

        Raises UserError when the parts contradict each other.
        """
        grid = [size.value for size in eps]
        fates.fit(grid, len(attack) + len(external))
        question = question_hash(
            model=model, dataset=dataset, norm=norm, eps=grid, attack=attack, engine=engine, seed=seed, flags=flags,
            external=external,
        )  # fmt: skip
        try:
            return cls(
                id=record_id(question, fates), question=question, model=model, dataset=dataset, norm=norm,
                attack=tuple(attack), engine=engine, seed=seed, flags=tuple(flags), seconds=seconds,
                corruptions=corruptions, external=tuple(external),
                forwards=forwards, backwards=backwards, useful=useful, environment=environment, supersedes=supersedes,
                **_numbers(fates, eps),
            )  # fmt: skip
        except ValidationError as error:
            raise UserError(f"record: {_first_error(error)}") from error

    def __repr__(self) -> str:
        top = self.curve[-1]
        return (
            f"<Record {self.id}: {self.model.title}, {self.attack_name}, {self.norm}, {self.n} images of "
            f"{self.dataset.name}: clean {self.clean:.1%}, {top.accuracy:.1%} at eps {top.eps_text}>"
        )

    def __str__(self) -> str:
        """The curve as a table, and the flags: what `advbench evaluate` shows."""
        about = f"{self.model.title}: {self.attack_name}, {self.norm}, {self.n} images of {self.dataset.name}"
        table = plain_table(self.curve_columns, self.curve_rows())
        flags = [f"{flag.severity}: {flag.name}: {flag.detail}" for flag in self.flags]
        return "\n".join([about, table, *flags, f"record {self.id}"])

    @property
    def felled_by(self) -> list[str]:
        """The names to which `by` in fates refers: of the attacks, then "external:NAME" of each file."""
        return [*(one.name for one in self.attack), *(f"external:{one.name}" for one in self.external)]

    @property
    def is_certified(self) -> bool:
        """Whether images were certified."""
        return any(point.certified is not None for point in self.curve)

    @property
    def curve_columns(self) -> tuple[str, ...]:
        """CURVE_COLUMNS, and where images were certified PROVED_COLUMNS."""
        return CURVE_COLUMNS + (PROVED_COLUMNS if self.is_certified else ())

    def curve_rows(self) -> list[tuple[str, ...]]:
        """A row of `curve_columns` for each eps, in percent."""
        digits = decimals(self.n)
        return [
            (
                point.eps_text,
                f"{100 * point.accuracy:.{digits}f}",
                f"{100 * point.ci_low:.{digits}f} - {100 * point.ci_high:.{digits}f}",
                f"{point.robust}/{point.n}",
                *(_proved(point, digits) if self.is_certified else ()),
            )
            for point in self.curve
        ]

    @property
    def eps(self) -> list[float]:
        """The grid, rising."""
        return [point.eps for point in self.curve]

    @property
    def n(self) -> int:
        """Number of images."""
        return self.curve[0].n

    @property
    def passes_an_image(self) -> float | None:
        """Forward and backward passes of the evaluation for each image; None where nobody counted them."""
        counted = self.forwards is not None and self.backwards is not None
        return (self.forwards + self.backwards) / self.n if counted else None  # type: ignore[operator]

    @property
    def attack_budget(self) -> int | None:
        """The passes that all attacks together were given for an image at each eps; None for their usual ones."""
        found = self.attack[0].settings.get(ATTACK_BUDGET)
        return found if isinstance(found, int) else None

    def doubts(self, eps: float | None = None) -> tuple[Flag, ...]:
        """The flags that doubt its number at `eps` (None: at any eps)."""
        return tuple(flag for flag in self.flags if flag.decides(eps))

    def words(self, flag: Flag) -> str:
        """The name, severity and eps of one of its flags, such as "square-wins (note at 8/255)"."""
        point = None if flag.eps is None else self.at(flag.eps)
        where = "" if flag.eps is None else f" at {point.eps_text if point else f'{flag.eps:g}'}"
        return f"{flag.name} ({flag.severity}{where})"

    @property
    def attack_name(self) -> str:
        """The sets that ran, such as "autoattack", or else the single attacks, joined by "+"."""
        return "+".join(dict.fromkeys(str(attack.settings.get("set", attack.name)) for attack in self.attack))

    def at(self, eps: float) -> CurvePoint | None:
        """The curve's point at `eps`, to 1 part in 10^9 (0.5 is 1/2, 0.0313725 is not 8/255); None if there is none."""
        for point in self.curve:
            if abs(point.eps - eps) <= 1e-9 * max(point.eps, eps):
                return point
        return None

    def verify(self, fates: Fates) -> None:
        """Raise UserError unless `question`, `id` and every counted number follow from the parts and `fates`."""
        fates.fit(self.eps, len(self.attack) + len(self.external))
        question = question_hash(
            model=self.model, dataset=self.dataset, norm=self.norm, eps=self.eps, attack=self.attack,
            engine=self.engine, seed=self.seed, flags=self.flags, external=self.external,
        )  # fmt: skip
        if question != self.question:
            raise UserError("its question is not the hash of its parts")
        if record_id(question, fates) != self.id:
            raise UserError("its id is not the hash of its question and verdicts")
        counted = _numbers(fates, [Eps(point.eps_text, point.eps) for point in self.curve])
        for name, value in counted.items():
            if not _nearly_equal(getattr(self, name), value):
                raise UserError(f"its {name} is not what the fates say")
        for number, one in enumerate(self.external, len(self.attack)):
            if int((fates.by == number).sum()) != one.felled:
                raise UserError(f"what {one.name} felled is not what the fates say")

    def save(self, folder: Path | str, fates: Fates) -> Path:
        """Write `folder/records/<dataset>/<norm>/<id>.json` and `.npz`, and return the path of the JSON.

        `folder` is a leaderboard or a run folder. An existing record with this id is left as it is, because it has the
        same verdicts; a notice may say that they were found again (see `notice.confirm`). Raises UserError when `fates`
        are not this record's, when the existing record is damaged, or when the folder cannot be written.
        """
        from advbench.record.notice import confirm  # which reads records

        self.verify(fates)
        path = record_path(Path(folder), self)
        with locked(Path(folder) / "records" / ".lock"):
            if path.exists():
                confirm(path, self.environment.date)
            else:  # the archive first: a JSON always has one, and an archive without JSON is left from a crash
                fates.save(path.with_suffix(".npz"), self.seal(fates))
                write_new(path, self.to_json())
        return path

    def save_as(self, path: Path, fates: Fates) -> None:
        """Write the JSON `path` and the `.npz` beside it, in place of an older record there, as a pair.

        Until both are written the archive lies under a name that belongs to this JSON alone: whenever this is killed,
        the older or the new record can be read. Raises UserError when that cannot be written.
        """
        self.verify(fates)
        content = self.to_json()
        with locked(path.with_name(f".{path.name}.lock")):
            fates.save(_waiting(path, content.encode()), self.seal(fates))
            write_atomic(path, content)
            replace_file(_waiting(path, content.encode()), path.with_suffix(".npz"))
            for leftover in path.parent.glob(f".{glob.escape(path.stem)}.*{_WAITING}"):
                leftover.unlink(missing_ok=True)

    def to_json(self) -> str:
        return json.dumps(self._plain(), indent=1, allow_nan=False) + "\n"

    def seal(self, fates: Fates) -> str:
        """Hash of the content of both files, in hexadecimal."""
        return _seal(self._plain(), fates)

    def _plain(self) -> dict[str, Any]:
        """The JSON as a dict. A record of schema 1 keeps the fields that it has."""
        omitted = set() if self.corruptions else {"corruptions"}
        return self.model_dump(mode="json", by_alias=True, exclude=omitted, exclude_unset=self.schema_version == 1)


class Damage(NamedTuple):
    """A damaged or misnamed record file, and what is wrong with it."""

    path: Path
    reason: str


def load_record(path: Path) -> tuple[Record, Fates]:
    """Read and verify a record and its archive. Raises UserError, naming the file, for any damage."""
    with reading(f"record {path}"):
        content = path.read_bytes()
        try:
            record = Record.model_validate_json(content, strict=True)
        except ValidationError as error:
            raise UserError(f"{path} is no valid record: {_first_error(error)}") from error
        archive = _waiting(path, content)
        if not archive.exists():
            archive = path.with_suffix(".npz")
        fates, seal = load_sealed(archive)
        try:
            record.verify(fates)
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if seal != _seal(json.loads(content), fates):
            raise UserError(f"{path} is damaged: its content is not what {archive.name} was sealed with")
        return (with_eps(record, fates) if record.schema_version == 1 else record), fates


def with_eps(record: Record, fates: Fates) -> Record:
    """A record of schema 1, whose flags have no eps, with those on black-box attacks counted again from the fates."""
    flags = [flag for flag in record.flags if not flag.name.endswith(WINS)]
    names = [flag.name.removesuffix(WINS) for flag in record.flags if flag.name.endswith(WINS)]
    for number, attack in enumerate(record.attack):
        if attack.name in names:
            flags += black_box_ahead(attack.name, [number], fates, record.eps, flags)
    return record.model_copy(update={"flags": tuple(flags)})


def record_path(folder: Path, record: Record) -> Path:
    """Where `Record.save` puts the JSON of `record` in `folder`, a leaderboard or a run folder."""
    return folder / "records" / slug(record.dataset.name) / record.norm / f"{record.id}.json"


def record_files(folder: Path) -> list[Path]:
    """The files below `folder` that are named as records are, sorted. Notices lie beside them and are none."""
    return sorted(path for path in folder.rglob("*.json") if not path.name.endswith(NOTICE))


def measured_eps(records: Sequence[Record], reference: float = 0.0) -> dict[float, int]:
    """Every eps > 0 at which any of `records` was measured, rising, with how many were.

    Those that `Record.at` takes for one are one; `reference` stands for those that are it.
    """
    found: list[float] = []
    for eps in sorted({reference, *(eps for record in records for eps in record.eps)} - {0.0}):
        if found and abs(eps - found[-1]) <= 1e-9 * eps:
            found[-1] = reference if reference in (eps, found[-1]) else found[-1]
        else:
            found.append(eps)
    counts = {eps: sum(record.at(eps) is not None for record in records) for eps in found}
    return {eps: count for eps, count in counts.items() if count}


def superseded(records: Iterable[Record]) -> set[str]:
    """The ids of `records` that another of them replaces: one of the same model and images that names it."""
    by_id = {record.id: record for record in records}

    def subject(record: Record) -> tuple[object, ...]:
        return record.model.identity, record.dataset.images_sha256

    return {
        old.id
        for new in by_id.values()
        if new.supersedes and (old := by_id.get(new.supersedes)) and subject(old) == subject(new)
    }


def load_records(folder: Path) -> tuple[list[Record], list[Damage]]:
    """All sound records below `folder`, sorted by id, and the damaged ones. A missing folder holds none."""
    found, damaged = load_with_fates(folder)
    return [record for record, _ in found], damaged


def load_with_fates(folder: Path) -> tuple[list[tuple[Record, Fates]], list[Damage]]:
    """As `load_records`, each record with its fates."""
    found: dict[str, tuple[Record, Fates]] = {}
    damaged = []
    for path in record_files(folder):
        try:
            record, fates = load_record(path)
        except UserError as error:
            damaged.append(Damage(path, str(error)))
            continue
        if path.stem == record.id:
            found[record.id] = record, fates
        else:
            damaged.append(Damage(path, f"{path} is misnamed: it holds record {record.id}"))
    return [found[key] for key in sorted(found)], damaged


def question_hash(
    *,
    model: ModelRef,
    dataset: DatasetRef,
    norm: str,
    eps: Sequence[float],
    attack: Sequence[AttackRef],
    engine: Engine,
    seed: int,
    flags: Sequence[Flag] = (),
    external: Sequence[External] = (),
) -> str:
    """sha256 of all that decides the verdicts: not of names, times, hardware or the place of the weights.

    Of `flags` only whether the model was not probed counts: a record that was is another. Of `external` the hashes do.
    """
    parts = {
        "weights": [model.weights_sha256, model.arch, model.settings, *_more_of(model)],
        "images": [dataset.images_sha256, dataset.indices],
        "norm": norm,
        "eps": [float(value) for value in eps],
        "attack": [one.model_dump(mode="json") for one in attack],
        "engine": engine.model_dump(mode="json"),
        "seed": seed,
    }
    if any(flag.name == NOT_PROBED for flag in flags):
        parts["probes"] = "off"
    if external:
        parts["external"] = [one.sha256 for one in external]
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


def _more_of(model: ModelRef) -> list[Any]:
    """What models of schema 1 did not have, if this one has any of it."""
    more = [model.code_sha256, model.mean, model.std, model.abstain]
    return more if any(part is not None for part in more) else []


def record_id(question: str, fates: Fates) -> str:
    """The first 16 hexadecimal digits of the sha256 of a question and its verdicts."""
    return hashlib.sha256(question.encode() + fates.verdicts()).hexdigest()[:16]


def slug(name: str) -> str:
    """`name` as one path component: itself if plain, else its plain characters and the start of its hash."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:60]
    return plain if plain and plain == name else f"{plain or 'dataset'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _waiting(path: Path, content: bytes) -> Path:
    """Where the archive of the JSON `path` lies while `save_as` replaces it by `content`."""
    return path.with_name(f".{path.stem}.{hashlib.sha256(content).hexdigest()[:16]}{_WAITING}")


def _seal(plain: dict[str, Any], fates: Fates) -> str:
    return hashlib.sha256((_canonical(plain) + fates.digest()).encode()).hexdigest()


def _numbers(fates: Fates, eps: Sequence[Eps]) -> dict[str, Any]:
    grid, n = [size.value for size in eps], len(fates)
    curve = []
    for index, size in enumerate(eps):
        robust = int(fates.standing(index).sum())
        low, high = wilson(robust, n)
        proved = None if fates.proved is None else int((fates.proved >= index).sum()) / n
        point: dict[str, Any] = {
            "certified": proved,
            "eps": size.value,
            "eps_text": size.text,
            "n": n,
            "robust": robust,
        }
        curve.append(CurvePoint(**point, accuracy=robust / n, ci_low=low, ci_high=high))
    return {
        "clean": int(fates.clean.sum()) / n,
        "curve": tuple(curve),
        "median_norm": fates.median_norm(grid),
        "auc": fates.auc(grid),
    }


def _proved(point: CurvePoint, digits: int) -> tuple[str, str]:
    """The share that is proved to stand, and what is between that and the accuracy, in percent."""
    if point.certified is None or point.gap is None:
        return "", ""
    return f"{100 * point.certified:.{digits}f}", f"{100 * point.gap:.{digits}f}"


def _nearly_equal(stored: Any, counted: Any) -> bool:
    """Equal up to the last bits of floats, which may differ between machines."""
    if isinstance(stored, tuple):
        return len(stored) == len(counted) and all(map(_nearly_equal, stored, counted))
    if isinstance(stored, CurvePoint):
        return all(_nearly_equal(getattr(stored, name), getattr(counted, name)) for name in CurvePoint.model_fields)
    if isinstance(stored, float) and isinstance(counted, float):
        return abs(stored - counted) <= 1e-9 * max(1.0, abs(counted))
    return bool(stored == counted)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _first_error(error: ValidationError) -> str:
    """The first validation error of pydantic, on one line."""
    found = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    return " ".join(f"{place + ': ' if place else ''}{must_be(found)}".split())
