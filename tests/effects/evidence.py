"""What an effect run is: trainings, evaluations and analyses on real data, and claims judged by their numbers.

Each system of the benchmark is one file beside this one, with an `EFFECT`. Its numbers are read from the records in
`leaderboards/`, the cards of the runs and the tables of the analyses; a verdict is a function of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from advbench.record import Record, load_record

BASE = Path("effects")  # runs and tables of analyses: made again by `make effects`, never committed
BOARDS = Path("leaderboards")
GRID = "0,0.1,0.2"
MARGIN = 2.0  # points: over three seeds digits vary by 0.7 to 3.4, so that less is no claim

Verdict = Literal["shown", "not shown", "shown only under PGD"]
MISSING = {"ours": "", "verdict": "not measured yet"}
BySeed = dict[int, float]


@dataclass(frozen=True)
class Runs:
    """Trainings of one recipe, one a seed. `{seed}` in `sets` stands for it."""

    label: str
    method: str
    sets: tuple[str, ...] = ()
    arch: str = "mlp"
    eps: str = "0.1"
    epochs: int | None = None
    seeds: tuple[int, ...] = (0,)
    dataset: str = "digits"

    @property
    def _plain(self) -> bool:
        return not self.sets and self.epochs is None

    def folder(self, seed: int) -> Path:
        """Where the run of `seed` lies: by the recipe's own name, or by the label where it has settings."""
        name = (
            f"{self.method}-{self.dataset}-{self.arch}-linf-{self.eps}" if self._plain else self.label.replace(" ", "-")
        )
        return BASE / "runs" / f"{name}-s{seed}"

    @property
    def folders(self) -> list[Path]:
        return list(map(self.folder, self.seeds))

    def commands(self) -> list[list[str]]:
        """`advbench train`, a seed each."""
        found = []
        for seed in self.seeds:
            told = ["train", "--method", self.method, "--dataset", self.dataset, "--arch", self.arch]
            told += ["--eps", self.eps, "--seed", str(seed)]
            told += [] if self.epochs is None else ["--epochs", str(self.epochs)]
            for text in self.sets:
                told += ["--set", text.format(seed=seed)]
            found.append([*told, "--out", str(self.folder(seed)), "--resume"])
        return found


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of each of `runs` on the whole test set, published; `file` in place of the best weights."""

    runs: Runs
    eps: str = GRID
    attack: str = "autoattack"
    file: str = ""

    @property
    def key(self) -> str:
        words = (self.runs.label, self.file.removesuffix(".safetensors"), self.attack)
        return " ".join(word for word in words if word and word != "autoattack")

    def spec(self, seed: int) -> str:
        return str(self.runs.folder(seed) / self.file)

    def commands(self) -> list[list[str]]:
        """`advbench evaluate`, all seeds at once."""
        told = ["evaluate", "--attack", self.attack, "--eps", self.eps]
        if self.file:
            told += ["--arch", self.runs.arch, "--dataset", self.runs.dataset]
        for seed in self.runs.seeds:
            told += ["--model", self.spec(seed)]
        return [[*told, "--leaderboard", str(BOARDS), "--resume"]]


@dataclass(frozen=True)
class Analysis:
    """`advbench analyze` on all of `runs`, kept as `key`; `args` are further flags."""

    key: str
    name: str
    runs: tuple[Runs, ...] = ()
    args: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return BASE / "analyses" / self.key

    @property
    def folders(self) -> list[Path]:
        return [folder for runs in self.runs for folder in runs.folders]

    def commands(self) -> list[list[str]]:
        return [["analyze", self.name, *map(str, self.folders), *self.args, "--out", str(self.out), "--force"]]

    @property
    def fresh(self) -> bool:
        """Whether it was done by this very command after the runs it is of."""
        told = self.out / "command.json"
        if not told.is_file() or json.loads(told.read_text()) != self.commands()[0]:
            return False
        return all(told.stat().st_mtime > (folder / "run.json").stat().st_mtime for folder in self.folders)


@dataclass(frozen=True)
class Claim:
    """What a paper says, its number, and the judge of ours: (ours, verdict)."""

    text: str
    paper: str
    judge: Callable[[Numbers], tuple[str, Verdict]]

    def judged(self, numbers: Numbers) -> dict[str, str]:
        """As it stands on the page; without numbers where some of its own are missing."""
        told = {"claim": self.text, "paper": self.paper}
        try:
            ours, found = self.judge(numbers)
        except KeyError:
            return told | MISSING
        return told | {"ours": ours, "verdict": found}


@dataclass(frozen=True)
class Effect:
    """All that is done for a system; `make effects SYSTEM=name` does it."""

    system: str
    source: str
    claims: tuple[Claim, ...]
    runs: tuple[Runs, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    analyses: tuple[Analysis, ...] = ()


@dataclass(frozen=True)
class Numbers:
    """What was measured: `records` by evaluation and seed, `tables` of the analyses, `trained`, facts of the runs."""

    records: Mapping[str, Mapping[int, Record]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    trained: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)

    def clean(self, key: str) -> BySeed:
        """Percent, by seed."""
        return {seed: 100 * record.clean for seed, record in self.records[key].items()}

    def robust(self, key: str, eps: str) -> BySeed:
        """Percent at `eps`, by seed."""
        points = {seed: record.at(float(eps)) for seed, record in self.records[key].items()}
        return {seed: 100 * point.accuracy for seed, point in points.items() if point}

    def doubts(self, key: str) -> list[str]:
        """Names of the flags, suspect or broken, that any of the records has."""
        flags = [flag for record in self.records[key].values() for flag in record.flags]
        return sorted({flag.name for flag in flags if flag.severity != "note"})

    def column(self, table: str, runs: Runs, name: str) -> BySeed:
        """A column of a table with a row a run, by seed."""
        named = {str(row["run"]): row for row in self.tables[table]}
        return {seed: float(named[runs.folder(seed).name][name]) for seed in runs.seeds}

    def percent(self, table: str, runs: Runs, name: str) -> BySeed:
        """The same of a column of shares, in percent."""
        return {seed: 100 * share for seed, share in self.column(table, runs, name).items()}


def read_numbers(stored: Mapping[str, Any]) -> Numbers:
    """The numbers of an effect's JSON, with the records that it names."""

    def by_seed(found: Mapping[str, Any]) -> dict[int, Any]:
        return {int(seed): value for seed, value in found.items()}

    records = {
        key: {seed: load_record(BOARDS / "records" / place)[0] for seed, place in by_seed(found).items()}
        for key, found in stored["records"].items()
    }
    trained = {label: by_seed(found) for label, found in stored["trained"].items()}
    return Numbers(records, stored["tables"], trained)


def said(values: BySeed | Sequence[float], digits: int = 1) -> str:
    """The mean, with the standard deviation over several seeds: "72.1 ± 0.8"."""
    found = list(values.values()) if isinstance(values, dict) else list(values)
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{spread}"


def differences(a: BySeed, b: BySeed) -> list[float]:
    """a - b, seed by seed."""
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def more(a: BySeed, b: BySeed, by: float = MARGIN) -> bool:
    """Whether a exceeds b: by the margin on average, and with each seed."""
    found = differences(a, b)
    return mean(found) >= by and min(found) > 0


def verdict(attacked: bool, pgd: bool = False) -> Verdict:
    """By whether the claim holds under AutoAttack, and whether it does under PGD."""
    return "shown" if attacked else "shown only under PGD" if pgd else "not shown"
