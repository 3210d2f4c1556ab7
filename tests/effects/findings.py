"""Measured numbers, paired differences of them, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from advbench.record import Fates, Record
from advbench.statistics import paired_means, seeds, worse

if TYPE_CHECKING:
    from evidence import Runs

MANY = 5_000  # test images from which a gain of 1 point counts; below it takes 2
BySeed = dict[int, float]
Verdict = Literal["shown", "refuted", "not shown", "shown only under PGD", "not measured yet"]


class Finding(NamedTuple):
    """Our numbers in words, the verdict, and the paired differences that decided."""

    ours: str
    verdict: Verdict
    difference: str = ""


@dataclass(frozen=True)
class Gain:
    """A paired difference of two accuracies, in points.

    `low`, `high`: its 95 % interval, the wider of that over seeds (Welch) and that over images (paired, of each image's
    mean over the seeds). `by_seed`: of each seed. `n`: images. `least`: the smallest gain that would have been
    significant (5 %, one-sided), None if none could.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    n: int
    least: float | None

    @property
    def margin(self) -> float:
        return 1.0 if self.n >= MANY else 2.0

    @property
    def verdict(self) -> Verdict:
        """Shown: at least the margin, with every seed, and the interval is above 0. Refuted: it is below the margin."""
        if self.mean >= self.margin and min(self.by_seed) > 0 and self.low > 0:
            return "shown"
        return "refuted" if self.high < self.margin else "not shown"

    def __str__(self) -> str:
        seeds = " ".join(f"{value:+.1f}" for value in self.by_seed)
        least = "" if self.least is None else f"; from {self.least:.1f} on it would have been significant"
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f}; seeds {seeds}{least})"


def gain(ours: NDArray[Any], control: NDArray[Any]) -> Gain:
    """The gain of `ours` over `control`: verdicts (seeds, images) in [0, 1], paired."""
    a, b = (100.0 * verdicts.mean(axis=1) for verdicts in (ours, control))
    over_images = paired_means(*(100.0 * verdicts.mean(axis=0) for verdicts in (ours, control)))
    # From ours to the control: there a drop is a gain of ours, and the smallest significant one is what is wanted.
    drop = over_images if len(a) == 1 else worse(seeds(a.tolist(), b.tolist()), over_images)
    by_seed = tuple(float(value) for value in a - b)
    return Gain(-drop.difference, -drop.high, -drop.low, by_seed, ours.shape[1], drop.least)


@dataclass(frozen=True)
class Numbers:
    """Measured numbers: `records` by evaluation and seed, `tables` of the analyses, `trained`: facts on the runs."""

    records: Mapping[str, Mapping[int, tuple[Record, Fates]]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    trained: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)

    def clean(self, key: str) -> BySeed:
        """Clean accuracy in percent, by seed."""
        return {seed: 100 * record.clean for seed, (record, _) in self.records[key].items()}

    def robust(self, key: str, eps: str) -> BySeed:
        """Robust accuracy at `eps` in percent, by seed."""
        points = {seed: record.at(float(eps)) for seed, (record, _) in self.records[key].items()}
        return {seed: 100 * point.accuracy for seed, point in points.items() if point}

    def standing(self, key: str, eps: str) -> NDArray[np.bool_]:
        """(seeds, images): the images that stand at `eps`, or at 0 those that are right."""
        found = []
        for record, fates in self.records[key].values():
            grid = [point.eps for point in record.curve]
            found.append(fates.clean if float(eps) == 0 else fates.standing(grid.index(float(eps))))
        return np.stack(found)

    def gain(self, key: str, control: str, eps: str = "0") -> Gain:
        """The paired gain of an evaluation over another one on the same images, in accuracy at `eps`."""
        assert [*self.records[key]] == [*self.records[control]], f"{key} and {control} have other seeds"
        a, b = (list(self.records[name].values()) for name in (key, control))
        assert {record.dataset.images_sha256 for record, _ in a} == {record.dataset.images_sha256 for record, _ in b}
        return gain(self.standing(key, eps), self.standing(control, eps))

    def at_equal_clean(self, key: str, rivals: Sequence[str], eps: str) -> Gain:
        """The paired gain in accuracy at `eps` over the line through `rivals`, at the same clean accuracy.

        The line joins the evaluations by rising clean accuracy. Beyond its ends it is the nearest end.
        """
        own = self.standing(key, "0").mean()
        points = sorted(
            ((self.standing(name, "0").mean(), self.standing(name, eps)) for name in rivals), key=itemgetter(0)
        )
        below = [point for point in points if point[0] <= own] or points[:1]
        above = [point for point in points if point[0] > own] or points[-1:]
        (low, left), (high, right) = below[-1], above[0]
        share = (own - low) / (high - low) if high > low else 0.0
        return gain(self.standing(key, eps), (1 - share) * left + share * right)

    def doubts(self, key: str) -> list[str]:
        """The names of the flags that any of the records has, without mere notes."""
        flags = [flag for record, _ in self.records[key].values() for flag in record.flags]
        return sorted({flag.name for flag in flags if flag.severity != "note"})

    def column(self, table: str, runs: Runs, name: str) -> BySeed:
        """A column, by seed, of a table with one row for each run."""
        named = {str(row["run"]): row for row in self.tables[table]}
        return {seed: float(named[runs.folder(seed).name][name]) for seed in runs.seeds}

    def percent(self, table: str, runs: Runs, name: str) -> BySeed:
        """Like `column`, for a column of fractions, in percent."""
        return {seed: 100 * share for seed, share in self.column(table, runs, name).items()}


def mean_sd(values: BySeed | Sequence[float], digits: int = 1) -> str:
    """The mean, and with several seeds the standard deviation: "72.1 ± 0.8"."""
    found = list(values.values()) if isinstance(values, dict) else list(values)
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{spread}"


def differences(a: BySeed, b: BySeed) -> list[float]:
    """a - b, for each seed."""
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def exceeds(a: BySeed, b: BySeed, by: float = 2.0) -> bool:
    """Whether a exceeds b by so many points on average, and with each seed by any amount."""
    found = differences(a, b)
    return mean(found) >= by and min(found) > 0


def verdict(attacked: bool, pgd: bool = False) -> Verdict:
    """The verdict on a claim that holds under AutoAttack (`attacked`) or under PGD (`pgd`)."""
    return "shown" if attacked else "shown only under PGD" if pgd else "not shown"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim of several parts: shown if all are, refuted if one is."""
    if all(one == "shown" for one in verdicts):
        return "shown"
    return "refuted" if "refuted" in verdicts else "not shown"


def absent(gains: Sequence[Gain], reach: float) -> Verdict:
    """The verdict on a claim that nothing is gained: refuted if a gain is shown, shown if no interval has `reach`."""
    if any(gain.verdict == "shown" for gain in gains):
        return "refuted"
    return "shown" if all(gain.high < reach for gain in gains) else "not shown"
