"""Measured numbers, paired differences of them, and verdicts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from advbench.eps import parse_eps
from advbench.record import Fates, Record
from advbench.statistics import LEVEL, seeds, student

if TYPE_CHECKING:
    from evidence import Runs

SECOND_LOOK = 0.975  # level of intervals where seeds were added after a look at fewer
MANY = 5_000  # test images from which a gain of 1 point counts; below it takes 2
BySeed = dict[int, float]
Verdict = Literal["shown", "shown, but small", "refuted", "not shown", "shown only under PGD", "not measured yet"]
GAINED: tuple[Verdict, ...] = ("shown", "shown, but small")
PARTS = "\n"  # between the differences of a claim
AT_CHANCE, CHANCE = "at-chance", 0.1  # a flag, and what a constant classifier gets right: all data here has ten classes


class Finding(NamedTuple):
    """Our numbers in words, the verdict, and the paired differences that decided, each a line.

    `rest`: the verdict if settings that were not tried gained so many points more; None if that cannot be said.
    """

    ours: str
    verdict: Verdict
    difference: str = ""
    rest: Callable[[float], Verdict] | None = None


@dataclass(frozen=True)
class Gain:
    """A difference of two accuracies, in points, or of another quantity.

    `low`, `high`: its interval. `by_seed`: of each seed. `margin`: the smallest that counts. `digits`: how many
    decimals it is told with. `never`: verdicts that the comparison cannot give, and `why`. `what`: the interval, if it
    is not of 95 %.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    margin: float
    digits: int = 1
    never: tuple[Verdict, ...] = ()
    why: str = ""
    what: str = ""

    @property
    def least(self) -> float:
        """The smallest that would have been shown beside the spread that is seen here."""
        return max(self.margin, self.mean - self.low)

    @property
    def verdict(self) -> Verdict:
        """What the numbers tell, unless the comparison cannot give it."""
        return "not shown" if self.told in self.never else self.told

    @property
    def told(self) -> Verdict:
        """Shown: above 0 with every seed and by its interval; small if it is less than the margin.

        Refuted: the interval is not above 0, and ends below the margin.
        """
        if min(self.by_seed) > 0 and self.low > 0:
            return "shown" if self.mean >= self.margin else "shown, but small"
        return "refuted" if self.high < self.margin and self.low <= 0 else "not shown"

    @property
    def brief(self) -> str:
        """Without `least`, where it is judged otherwise."""
        mean, low, high, *seeds = (f"{x:+.{self.digits}f}" for x in (self.mean, self.low, self.high, *self.by_seed))
        return f"{mean} ({self.what}{low} to {high}; seeds {' '.join(seeds)})"

    def more(self, points: float) -> Gain:
        """The gain if it were so much larger."""
        mean, low, high, *each = (x + points for x in (self.mean, self.low, self.high, *self.by_seed))
        return replace(self, mean=mean, low=low, high=high, by_seed=tuple(each))

    def __str__(self) -> str:
        if self.told in self.never:
            return f"{self.brief}, but {self.why}"
        return f"{self.brief[:-1]}; from {self.least:.{self.digits}f} on it would have been shown)"


def gain(
    ours: NDArray[Any],
    control: NDArray[Any],
    why: str = "",
    *,
    never: tuple[Verdict, ...] = GAINED,
    same_nets: bool = False,
    level: float = LEVEL,
) -> Gain:
    """The gain of `ours` over `control`: verdicts (seeds, images) in [0, 1], paired.

    The errors over seeds (Welch, or paired if both are of the `same_nets`) and over images (paired, of each image's
    mean over the seeds) are independent, so the half-widths of their intervals are added in squares. `why`: the reason
    for which this gain cannot give the verdicts `never`; "" if it can give all.
    """
    a, b = (dict(enumerate(100.0 * verdicts.mean(axis=1))) for verdicts in (ours, control))
    change = 100.0 * (ours.mean(axis=0) - control.mean(axis=0))
    middle = float(change.mean())
    over_images = student(middle, float(change.std(ddof=1)), change.size, level).high - middle
    margin = 1.0 if change.size >= MANY else 2.0
    found = of_the_same(a, b, margin, level=level) if same_nets else by_seeds(a, b, margin, level=level)
    half = math.hypot(found.high - found.mean, over_images)
    return replace(found, low=found.mean - half, high=found.mean + half, never=never if why else (), why=why)


def by_seeds(ours: BySeed, control: BySeed, margin: float = 0.0, digits: int = 1, *, level: float = LEVEL) -> Gain:
    """The gain of one number a seed, with its interval over seeds (Welch)."""
    assert [*ours] == [*control]
    found = seeds(list(control.values()), list(ours.values()), level)
    each = tuple(differences(ours, control))
    return Gain(found.difference, found.low, found.high, each, margin, digits, what=named(level))


def of_the_same(ours: BySeed, control: BySeed, margin: float = 0.0, digits: int = 1, *, level: float = LEVEL) -> Gain:
    """The gain of one number a seed where both are of the same nets, with the interval over seeds (paired)."""
    each = differences(ours, control)
    low, high = student(mean(each), stdev(each), len(each), level)
    return Gain(mean(each), low, high, tuple(each), margin, digits, what=named(level))


def named(level: float) -> str:
    """What is said before an interval."""
    return "" if level == LEVEL else f"{100 * level:g} %: "


def conclude(ours: str, gains: Mapping[str, Gain], rule: Callable[[Sequence[Gain]], Verdict] | None = None) -> Finding:
    """The finding of several gains, by name: by default all are claimed. Another `rule` tells no smallest gain."""
    every = list(gains.values())
    judge = rule or (lambda of: worst([gain.verdict for gain in of]))
    told = {name: gain.brief if rule else f"{gain}" for name, gain in gains.items()}
    parts = (f"{name}: {text}" if name else text for name, text in told.items())
    return Finding(ours, judge(every), PARTS.join(parts), lambda points: judge([gain.more(points) for gain in every]))


@dataclass(frozen=True)
class Numbers:
    """Measured numbers: `records` by evaluation and seed, `tables` of the analyses, `trained`: facts on the runs.

    `first`: the first image that gains count. `level`: of their intervals.
    """

    records: Mapping[str, Mapping[int, tuple[Record, Fates]]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    trained: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    first: int = 0
    level: float = LEVEL

    def clean(self, key: str) -> BySeed:
        """Clean accuracy in percent, by seed."""
        return {seed: 100 * record.clean for seed, (record, _) in self.records[key].items()}

    def robust(self, key: str, eps: str) -> BySeed:
        """Robust accuracy at `eps` in percent, by seed."""
        points = {seed: record.at(size(eps)) for seed, (record, _) in self.records[key].items()}
        return {seed: 100 * point.accuracy for seed, point in points.items() if point}

    def standing(self, key: str, eps: str) -> NDArray[np.bool_]:
        """(seeds, images from `first` on): those that stand at `eps`, or at 0 those that are right."""
        found = []
        for record, fates in self.records[key].values():
            grid = [point.eps for point in record.curve]
            found.append(fates.standing(grid.index(size(eps))) if size(eps) else fates.clean)
        return np.stack(found)[:, self.first :]

    def beside(self, key: str, strongest: str, eps: str) -> str:
        """AutoAttack's accuracy on its images, and that of an evaluation by APGD-T on the same ones, in words."""
        found = self.robust(strongest, eps)
        n = next(iter(self.records[strongest].values()))[0].dataset.count
        same = [100 * standing.mean() for standing in self.standing(key, eps)[:, : n - self.first]]
        return f"on {n:,}: AutoAttack {mean_sd(found)}, APGD-T {mean_sd(dict(enumerate(same)))}"

    def gain(self, key: str, control: str, eps: str = "0") -> Gain:
        """The paired gain of an evaluation over another one on the same images, in accuracy at `eps`."""
        assert [*self.records[key]] == [*self.records[control]], f"{key} and {control} have other seeds"
        a, b = (list(self.records[name].values()) for name in (key, control))
        assert {record.dataset.images_sha256 for record, _ in a} == {record.dataset.images_sha256 for record, _ in b}
        why = self.doubt(key, control, eps) if size(eps) else ""
        return gain(self.standing(key, eps), self.standing(control, eps), why, level=self.level)

    def at_equal_clean(self, key: str, rivals: Sequence[str], eps: str) -> Gain:
        """The paired gain in accuracy at `eps` over the line through `rivals`, at the same clean accuracy.

        The line joins, by rising clean accuracy, those of which no other is better in both accuracies; each seed has
        its own place on the piece in which the mean lies. Beyond the line there is its nearest end: what is less clean
        than that is not shown to be better, and what is cleaner is not refuted.
        """
        assert all([*self.records[key]] == [*self.records[name]] for name in rivals), (
            f"{key} and its rivals: other seeds"
        )
        points = [(self.standing(name, "0").mean(axis=1), self.standing(name, eps)) for name in rivals]
        both = [(clean.mean(), standing.mean()) for clean, standing in points]
        beaten = [any(c >= a and d >= b and (c, d) != (a, b) for c, d in both) for a, b in both]
        line = sorted((one for one, out in zip(points, beaten, strict=True) if not out), key=lambda one: one[0].mean())
        own = self.standing(key, "0").mean(axis=1)
        place = bisect_right([clean.mean() for clean, _ in line], own.mean())
        (low, left), (high, right) = line[max(place - 1, 0)], line[min(place, len(line) - 1)]
        share = np.clip((own - low) / np.where(high > low, high - low, np.inf), 0, 1)[:, None]
        rivals_at = (1 - share) * left + share * right
        never, why = GAINED, self.doubt(key) or ("it is less clean than the line" if place == 0 else "")
        if not why and own.mean() > line[-1][0].mean():
            never, why = ("refuted",), "it is cleaner than the line"
        return gain(self.standing(key, eps), rivals_at, why, never=never, level=self.level)

    def doubt(self, key: str, control: str = "", eps: str = "") -> str:
        """Why a gain of `key` cannot be shown: a flag doubts its accuracy, or a net of the control is at chance, or no
        more than chance stands at `eps`.
        """
        if flags := self.doubts(key):
            return f"flagged {', '.join(flags)}"
        if control and AT_CHANCE in self.doubts(control):
            return "its control is at chance"
        return "no more than chance withstands" if eps and self.standing(key, eps).mean() <= CHANCE else ""

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


def size(eps: str) -> float:
    """Of "0.1" or "8/255"; norms differ in the limits alone."""
    return parse_eps(eps, "l2").value


def mean_sd(values: BySeed | Sequence[float], digits: int = 1) -> str:
    """The mean, and with several seeds the standard deviation: "72.1 ± 0.8"."""
    found = list(values.values()) if isinstance(values, dict) else list(values)
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{spread}"


def differences(a: BySeed, b: BySeed) -> list[float]:
    """a - b, for each seed."""
    return [float(a[seed] - b[seed]) for seed in sorted(a.keys() & b.keys())]


def verdict(attacked: bool, pgd: bool = False) -> Verdict:
    """The verdict on a claim that holds under AutoAttack (`attacked`) or under PGD (`pgd`)."""
    return "shown" if attacked else "shown only under PGD" if pgd else "not shown"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim of several parts: that of all, small if all are shown but some small; else refuted if one
    is.
    """
    if all(one in GAINED for one in verdicts):
        return "shown, but small" if "shown, but small" in verdicts else "shown"
    return "refuted" if "refuted" in verdicts else "not shown"


def absent(gains: Sequence[Gain], reach: float) -> Verdict:
    """The verdict on a claim that less than `reach` is gained: by where the intervals lie."""
    if any(gain.low >= reach for gain in gains):
        return "refuted"
    return "shown" if all(gain.high < reach for gain in gains) else "not shown"
