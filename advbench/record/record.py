"""The record: counted from fates, named by a hash, and verified whenever it is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from advbench.eps import CORRUPTIONS, NORMS, Eps, parse_eps
from advbench.errors import UserError, reading
from advbench.files import locked, write_new
from advbench.record.fates import Fates, load_sealed
from advbench.record.parts import (
    AttackRef,
    Corruptions,
    Count,
    CurvePoint,
    DatasetRef,
    Engine,
    Environment,
    Flag,
    Id,
    ModelRef,
    Part,
    Sha256,
    Share,
)
from advbench.statistics import wilson

RANKED_OUT = ("suspect", "broken")  # severities that keep a model out of the ranking


class Record(Part):
    """A measurement, made by `Record.of`. Accuracies, intervals and auc are fractions."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
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
    forwards: Count
    backwards: Count
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
        forwards: int = 0,
        backwards: int = 0,
        supersedes: str | None = None,
    ) -> Record:
        """The record of a finished evaluation, whose accuracies, auc and median_norm are counted from `fates`.

        Raises UserError when the parts contradict each other.
        """
        grid = [size.value for size in eps]
        fates.fit(grid, len(attack))
        question = question_hash(
            model=model, dataset=dataset, norm=norm, eps=grid, attack=attack, engine=engine, seed=seed
        )
        try:
            return cls(
                id=record_id(question, fates), question=question, model=model, dataset=dataset, norm=norm,
                attack=tuple(attack), engine=engine, seed=seed, flags=tuple(flags), seconds=seconds,
                corruptions=corruptions,
                forwards=forwards, backwards=backwards, environment=environment, supersedes=supersedes,
                **_numbers(fates, eps),
            )  # fmt: skip
        except ValidationError as error:
            raise UserError(f"record: {_first_error(error)}") from error

    @property
    def eps(self) -> list[float]:
        """The grid, rising."""
        return [point.eps for point in self.curve]

    @property
    def n(self) -> int:
        """Number of images."""
        return self.curve[0].n

    @property
    def doubted(self) -> bool:
        """Whether a flag keeps this record out of the ranking."""
        return any(flag.severity in RANKED_OUT for flag in self.flags)

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
        fates.fit(self.eps, len(self.attack))
        question = question_hash(
            model=self.model, dataset=self.dataset, norm=self.norm, eps=self.eps,
            attack=self.attack, engine=self.engine, seed=self.seed,
        )  # fmt: skip
        if question != self.question:
            raise UserError("its question is not the hash of its parts")
        if record_id(question, fates) != self.id:
            raise UserError("its id is not the hash of its question and verdicts")
        counted = _numbers(fates, [Eps(point.eps_text, point.eps) for point in self.curve])
        for name, value in counted.items():
            if not _nearly_equal(getattr(self, name), value):
                raise UserError(f"its {name} is not what the fates say")

    def save(self, folder: Path | str, fates: Fates) -> Path:
        """Write `folder/records/<dataset>/<norm>/<id>.json` and `.npz`, and return the path of the JSON.

        `folder` is a leaderboard or a run folder. An existing record with this id is left as it is, because it has the
        same verdicts. Raises UserError when `fates` are not this record's, when the existing record is damaged, or when
        the folder cannot be written.
        """
        self.verify(fates)
        records = Path(folder) / "records"
        path = records / slug(self.dataset.name) / self.norm / f"{self.id}.json"
        with locked(records / ".lock"):
            if path.exists():
                load_record(path)
            else:  # the archive first: a JSON always has one, and an archive without JSON is left from a crash
                fates.save(path.with_suffix(".npz"), self.seal(fates))
                write_new(path, self.to_json())
        return path

    def to_json(self) -> str:
        return json.dumps(self._plain(), indent=1, allow_nan=False) + "\n"

    def seal(self, fates: Fates) -> str:
        """Hash of the content of both files, in hexadecimal."""
        return hashlib.sha256((_canonical(self._plain()) + fates.digest()).encode()).hexdigest()

    def _plain(self) -> dict[str, Any]:
        # Records of attacks omit the field, so that seals made before it existed stay valid.
        return self.model_dump(mode="json", by_alias=True, exclude=None if self.corruptions else {"corruptions"})


class Damage(NamedTuple):
    """A damaged or misnamed record file, and what is wrong with it."""

    path: Path
    reason: str


def load_record(path: Path) -> tuple[Record, Fates]:
    """Read and verify a record and its archive. Raises UserError, naming the file, for any damage."""
    with reading(f"record {path}"):
        try:
            record = Record.model_validate_json(path.read_bytes(), strict=True)
        except ValidationError as error:
            raise UserError(f"{path} is no valid record: {_first_error(error)}") from error
        archive = path.with_suffix(".npz")
        fates, seal = load_sealed(archive)
        try:
            record.verify(fates)
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if seal != record.seal(fates):
            raise UserError(f"{path} is damaged: its content is not what {archive.name} was sealed with")
        return record, fates


def load_records(folder: Path) -> tuple[list[Record], list[Damage]]:
    """All sound records below `folder`, sorted by id, and the damaged ones. A missing folder holds none."""
    found: dict[str, Record] = {}
    damaged = []
    for path in sorted(folder.rglob("*.json")):
        try:
            record, _ = load_record(path)
        except UserError as error:
            damaged.append(Damage(path, str(error)))
            continue
        if path.stem == record.id:
            found[record.id] = record
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
) -> str:
    """sha256 of all that decides the verdicts: not of names, times, hardware or the place of the weights."""
    parts = {
        "weights": [model.weights_sha256, model.arch, model.settings],
        "images": [dataset.images_sha256, dataset.indices],
        "norm": norm,
        "eps": [float(value) for value in eps],
        "attack": [one.model_dump(mode="json") for one in attack],
        "engine": engine.model_dump(mode="json"),
        "seed": seed,
    }
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


def record_id(question: str, fates: Fates) -> str:
    """The first 16 hexadecimal digits of the sha256 of a question and its verdicts."""
    return hashlib.sha256(question.encode() + fates.verdicts()).hexdigest()[:16]


def slug(name: str) -> str:
    """`name` as one path component: itself if plain, else its plain characters and the start of its hash."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:60]
    return plain if plain and plain == name else f"{plain or 'dataset'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _numbers(fates: Fates, eps: Sequence[Eps]) -> dict[str, Any]:
    grid, n = [size.value for size in eps], len(fates)
    curve = []
    for index, size in enumerate(eps):
        robust = int(fates.standing(index).sum())
        low, high = wilson(robust, n)
        point: dict[str, Any] = {"eps": size.value, "eps_text": size.text, "n": n, "robust": robust}
        curve.append(CurvePoint(**point, accuracy=robust / n, ci_low=low, ci_high=high))
    return {
        "clean": int(fates.clean.sum()) / n,
        "curve": tuple(curve),
        "median_norm": fates.median_norm(grid),
        "auc": fates.auc(grid),
    }


def _nearly_equal(stored: Any, counted: Any) -> bool:
    """Equal up to the last bits of floats, which may differ between machines."""
    if isinstance(stored, tuple):
        return len(stored) == len(counted) and all(map(_nearly_equal, stored, counted))
    if isinstance(stored, CurvePoint):
        pairs = zip(dict(stored).values(), dict(counted).values(), strict=True)
        return all(_nearly_equal(a, b) for a, b in pairs)
    if isinstance(stored, float) and isinstance(counted, float):
        return abs(stored - counted) <= 1e-9 * max(1.0, abs(counted))
    return bool(stored == counted)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _first_error(error: ValidationError) -> str:
    """The first validation error of pydantic, on one line."""
    found = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    return " ".join(f"{place + ': ' if place else ''}{found['msg']}".split())
