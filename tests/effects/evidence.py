"""Effects of the systems: trainings, evaluations and analyses on real data, and claims judged by their numbers.

Each system of the benchmark is a file in this folder, with an `EFFECT`. Its numbers come from the records in
`leaderboards/`, the cards of the runs and the tables of the analyses. A verdict is a function of these numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from advbench.record import Record, load_record

BASE = Path("effects")  # runs and tables of analyses, which `make effects` makes again and nobody commits
BOARDS = Path("leaderboards")
GRID = "0,0.1,0.2"
MARGIN = 2.0  # in points: results on digits vary by 0.7 to 3.4 over three seeds, so a smaller gain counts as none

Verdict = Literal["shown", "not shown", "shown only under PGD"]
MISSING = {"ours": "", "verdict": "not measured yet"}
BySeed = dict[int, float]


@dataclass(frozen=True)
class Runs:
    """Trainings with one recipe, one for each seed. `{seed}` in `sets` is replaced by the seed."""

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
        """The run folder of `seed`, named by the recipe, or by the label if there are settings."""
        name = (
            f"{self.method}-{self.dataset}-{self.arch}-linf-{self.eps}" if self._plain else self.label.replace(" ", "-")
        )
        return BASE / "runs" / f"{name}-s{seed}"

    @property
    def folders(self) -> list[Path]:
        return list(map(self.folder, self.seeds))

    def commands(self) -> list[list[str]]:
        """The arguments of `advbench train`, one command for each seed."""
        found = []
        for seed in self.seeds:
            command = ["train", "--method", self.method, "--dataset", self.dataset, "--arch", self.arch]
            command += ["--eps", self.eps, "--seed", str(seed)]
            command += [] if self.epochs is None else ["--epochs", str(self.epochs)]
            for text in self.sets:
                command += ["--set", text.format(seed=seed)]
            found.append([*command, "--out", str(self.folder(seed)), "--resume"])
        return found


@dataclass(frozen=True)
class Evaluation:
    """A published evaluation of each of `runs` on the whole test set, with the best weights or those in `file`."""

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
        """The arguments of `advbench evaluate`: one command for all seeds."""
        command = ["evaluate", "--attack", self.attack, "--eps", self.eps]
        if self.file:
            command += ["--arch", self.runs.arch, "--dataset", self.runs.dataset]
        for seed in self.runs.seeds:
            command += ["--model", self.spec(seed)]
        return [[*command, "--leaderboard", str(BOARDS), "--resume"]]


@dataclass(frozen=True)
class Analysis:
    """An `advbench analyze` of all `runs`, stored under `key`; `args` are further flags."""

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
        """Whether the stored analysis is of this command, and newer than its runs."""
        command = self.out / "command.json"
        if not command.is_file() or json.loads(command.read_text()) != self.commands()[0]:
            return False
        return all(command.stat().st_mtime > (folder / "run.json").stat().st_mtime for folder in self.folders)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, the paper's number, and a judge that returns (our numbers as text, verdict)."""

    text: str
    paper: str
    judge: Callable[[Numbers], tuple[str, Verdict]]

    def judged(self, numbers: Numbers) -> dict[str, str]:
        """The claim's row on the page. If some of its numbers are missing, it is "not measured yet"."""
        row = {"claim": self.text, "paper": self.paper}
        try:
            ours, found = self.judge(numbers)
        except KeyError:
            return row | MISSING
        return row | {"ours": ours, "verdict": found}


@dataclass(frozen=True)
class Effect:
    """What `make effects SYSTEM=name` does for a system."""

    system: str
    source: str
    claims: tuple[Claim, ...]
    runs: tuple[Runs, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    analyses: tuple[Analysis, ...] = ()


@dataclass(frozen=True)
class Numbers:
    """Measured numbers: `records` by evaluation and seed, `tables` of the analyses, `trained`: facts on the runs."""

    records: Mapping[str, Mapping[int, Record]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    trained: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)

    def clean(self, key: str) -> BySeed:
        """Clean accuracy in percent, by seed."""
        return {seed: 100 * record.clean for seed, record in self.records[key].items()}

    def robust(self, key: str, eps: str) -> BySeed:
        """Robust accuracy at `eps` in percent, by seed."""
        points = {seed: record.at(float(eps)) for seed, record in self.records[key].items()}
        return {seed: 100 * point.accuracy for seed, point in points.items() if point}

    def doubts(self, key: str) -> list[str]:
        """The names of the flags that any of the records has, without mere notes."""
        flags = [flag for record in self.records[key].values() for flag in record.flags]
        return sorted({flag.name for flag in flags if flag.severity != "note"})

    def column(self, table: str, runs: Runs, name: str) -> BySeed:
        """A column, by seed, of a table with one row for each run."""
        named = {str(row["run"]): row for row in self.tables[table]}
        return {seed: float(named[runs.folder(seed).name][name]) for seed in runs.seeds}

    def percent(self, table: str, runs: Runs, name: str) -> BySeed:
        """Like `column`, for a column of fractions, in percent."""
        return {seed: 100 * share for seed, share in self.column(table, runs, name).items()}


def read_numbers(stored: Mapping[str, Any]) -> Numbers:
    """The numbers in an effect's JSON, and the records that it names."""

    def by_seed(found: Mapping[str, Any]) -> dict[int, Any]:
        return {int(seed): value for seed, value in found.items()}

    records = {
        key: {seed: load_record(BOARDS / "records" / place)[0] for seed, place in by_seed(found).items()}
        for key, found in stored["records"].items()
    }
    trained = {label: by_seed(found) for label, found in stored["trained"].items()}
    return Numbers(records, stored["tables"], trained)


def mean_sd(values: BySeed | Sequence[float], digits: int = 1) -> str:
    """The mean, and with several seeds the standard deviation: "72.1 ± 0.8"."""
    found = list(values.values()) if isinstance(values, dict) else list(values)
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{spread}"


def differences(a: BySeed, b: BySeed) -> list[float]:
    """a - b, for each seed."""
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def exceeds(a: BySeed, b: BySeed, by: float = MARGIN) -> bool:
    """Whether a exceeds b by the margin on average, and with each seed by any amount."""
    found = differences(a, b)
    return mean(found) >= by and min(found) > 0


def verdict(attacked: bool, pgd: bool = False) -> Verdict:
    """The verdict on a claim that holds under AutoAttack (`attacked`) or under PGD (`pgd`)."""
    return "shown" if attacked else "shown only under PGD" if pgd else "not shown"
