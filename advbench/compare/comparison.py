"""Differences between models measured on the same images, and the verdict of a gate on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advbench import statistics
from advbench.compare.gate import Branch, Quantity, Test, parse_gate
from advbench.compare.results import Check, Comparison, Finding, Gate, Row
from advbench.compare.sides import Measured, Side, align
from advbench.eps import Eps
from advbench.errors import UserError
from advbench.statistics import Estimate


def compare(
    sides: Sequence[Side],
    baseline: Side | None = None,
    *,
    fail_if: str | None = None,
    alpha: float = 0.05,
    strict: bool = False,
    unpaired: bool = False,
) -> Comparison:
    """Compare each side with the baseline, which by default is the first side.

    Accuracies are compared at every eps at which all sides were measured, auc over that common grid, and median_norm
    if all sides have it.

    The gate `fail_if` (its language is in `gate`) fails for a model when all drops of a branch exceed their tolerances
    and all are significant at `alpha`, with Holm's adjustment over branches and models. `strict` drops the condition of
    significance.

    Raises UserError for sides with different norms, and for sides with different images unless `unpaired`.
    """
    branches = () if fail_if is None else parse_gate(fail_if)
    if not 0 < alpha < 1:
        raise UserError(f"alpha {alpha:g} is no significance level: choose a number between 0 and 1, such as 0.05")
    if baseline is None:
        sides, baseline = sides[1:], sides[0] if sides else None
    others = [side for side in sides if baseline is None or side.label != baseline.label]
    if baseline is None or not others:
        raise UserError("nothing to compare: name two models, or one and --baseline")
    aligned = align([baseline, *others])
    _check(aligned, unpaired)
    judge = _Judge(aligned, paired=not unpaired)
    rows = judge.rows()
    gate = None if fail_if is None else Gate(fail_if, alpha, strict, judge.findings(branches, alpha, strict))
    record = aligned[0].units[0].record
    notes = _notes(aligned, judge, unpaired)
    return Comparison(tuple(aligned), record.dataset.name, record.norm, rows, gate, notes)


class _Judge:
    def __init__(self, sides: Sequence[Side], *, paired: bool) -> None:
        self.base, self.others, self.paired = sides[0], sides[1:], paired
        units = [unit for side in sides for unit in side.units]
        self.grid = [
            Eps(point.eps_text, point.eps)
            for point in units[0].record.curve
            if all(unit.record.at(point.eps) for unit in units)
        ]
        self.quantities = [Quantity("clean"), *(Quantity("acc", eps) for eps in self.grid if eps.value > 0)]
        if self.grid:
            self.quantities.append(Quantity("auc"))
        if all(unit.record.median_norm is not None for unit in units):
            self.quantities.append(Quantity("median_norm"))
        self._known: dict[tuple[str, str], tuple[Estimate, str, int]] = {}

    def rows(self) -> tuple[Row, ...]:
        found = []
        for quantity in self.quantities:
            estimates = [self.estimate(side, quantity) for side in self.others]
            adjusted = statistics.holm([estimate.p for estimate, _, _ in estimates])
            old, old_sd = self.value(self.base, quantity)
            for side, (estimate, test, n), p_holm in zip(self.others, estimates, adjusted, strict=True):
                new, new_sd = self.value(side, quantity)
                found.append(
                    Row(side.label, str(quantity), old, new, *estimate, p_holm, test, n, old_sd, new_sd)
                )  # fmt: skip
        order = {side.label: index for index, side in enumerate(self.others)}
        return tuple(sorted(found, key=lambda row: order[row.model]))

    def findings(self, branches: Sequence[Branch], alpha: float, strict: bool) -> tuple[Finding, ...]:
        asked = [(side, branch) for side in self.others for branch in branches]
        checks = [tuple(self.check(side, test) for test in branch.tests) for side, branch in asked]
        adjusted = statistics.holm([max(check.p for check in several) for several in checks])
        return tuple(
            Finding(
                side.label, str(branch), several, p,
                failed=all(check.exceeded for check in several) and (strict or p < alpha),
            )
            for (side, branch), several, p in zip(asked, checks, adjusted, strict=True)
        )  # fmt: skip

    def check(self, side: Side, test: Test) -> Check:
        quantity = self.known(test.quantity, [self.base, side] if test.relative else [side])
        value = self.value(side, quantity)[0]
        if test.relative:
            baseline = self.value(self.base, quantity)[0]
            p = self.estimate(side, quantity)[0].p
            return Check(test.text, value, baseline - test.bound, test.fires(value, baseline), p)
        return Check(test.text, value, test.bound, test.fires(value, 0.0), self.p_against(side, quantity, test.bound))

    def known(self, quantity: Quantity, sides: Sequence[Side]) -> Quantity:
        """`quantity`, or "clean" for acc@0. Raises UserError unless it was measured on all `sides`."""
        units = [unit for side in sides for unit in side.units]
        if quantity.kind == "acc" and quantity.eps is not None:
            if quantity.eps.value == 0:
                return Quantity("clean")
            for unit in units:
                if unit.record.at(quantity.eps.value) is None:
                    sizes = ", ".join(point.eps_text for point in unit.record.curve)
                    raise UserError(f"{unit.record.model.spec} was not measured at {quantity.eps}: choose from {sizes}")
        if quantity.kind == "auc" and not self.grid:
            raise UserError("there is no auc to compare: no eps is common to all sides")
        if quantity.kind == "median_norm" and any(unit.record.median_norm is None for unit in units):
            raise UserError(
                "median_norm is not known on every side: measure with a minimum-norm attack, or gate on auc or acc@EPS"
            )
        return quantity

    def value(self, side: Side, quantity: Quantity) -> tuple[float, float | None]:
        """The mean over the side's models, and their standard deviation, None for a single model."""
        values = self.values(side, quantity)
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None

    def values(self, side: Side, quantity: Quantity) -> list[float]:
        if quantity.kind == "median_norm":
            return [float(np.median(self.samples(unit, quantity))) for unit in side.units]
        return [float(np.mean(self.samples(unit, quantity))) for unit in side.units]

    def samples(self, unit: Measured, quantity: Quantity) -> NDArray[Any]:
        """(N,) for each sample whether the model is right, its area, or its distance."""
        if quantity.kind == "clean":
            return unit.fates.clean
        if quantity.kind == "median_norm":
            return unit.fates.distances(unit.record.eps)
        if quantity.eps is not None:
            return self._standing(unit, quantity.eps.value)
        eps = [size.value for size in self.grid]
        standing = np.stack([self._standing(unit, value) for value in eps]).astype(np.float64)
        if len(eps) == 1:
            return standing[0]
        return np.asarray(np.trapezoid(standing, eps, axis=0) / (eps[-1] - eps[0]))

    def estimate(self, side: Side, quantity: Quantity) -> tuple[Estimate, str, int]:
        """The difference to the baseline, the name of the test, and how many samples or models it compares."""
        key = (side.label, str(quantity))
        if key not in self._known:
            self._known[key] = self._estimate(side, quantity)
        return self._known[key]

    def _estimate(self, side: Side, quantity: Quantity) -> tuple[Estimate, str, int]:
        if len(side.units) > 1 or len(self.base.units) > 1:
            test = "Student's t, one model against several"
            if min(len(side.units), len(self.base.units)) > 1:
                test = "Welch's t over models"
            found = statistics.seeds(self.values(self.base, quantity), self.values(side, quantity))
            return found, test, len(self.base.units) + len(side.units)
        old, new = (self.samples(one.units[0], quantity) for one in (self.base, side))
        n = len(new) if self.paired else len(old) + len(new)
        if quantity.is_accuracy:
            if self.paired:
                return statistics.paired_accuracies(old, new), "exact McNemar", n
            counts = ((int(old.sum()), len(old)), (int(new.sum()), len(new)))
            return statistics.unpaired_accuracies(*counts), "Fisher's exact", n
        if quantity.kind == "auc":
            if self.paired:
                return statistics.paired_means(old, new), "paired permutation", n
            return statistics.unpaired_samples(old, new), "permutation", n
        if self.paired:
            return statistics.paired_medians(old, new), "paired permutation", n
        return statistics.unpaired_samples(old, new, np.median), "permutation", n

    def p_against(self, side: Side, quantity: Quantity, number: float) -> float:
        if len(side.units) > 1:
            return statistics.mean_against(np.asarray(self.values(side, quantity)), number)
        samples = self.samples(side.units[0], quantity)
        if quantity.is_accuracy:
            return statistics.share_against(int(samples.sum()), len(samples), number)
        if quantity.kind == "auc":
            return statistics.mean_against(samples, number)
        return statistics.median_against(samples, number)

    def _standing(self, unit: Measured, eps: float) -> NDArray[np.bool_]:
        return unit.fates.standing(int(np.argmin(np.abs(np.asarray(unit.record.eps) - eps))))


def _check(sides: Sequence[Side], unpaired: bool) -> None:
    """Raise UserError when the sides cannot be compared."""
    base = sides[0].units[0].record
    for side in sides[1:]:
        record = side.units[0].record
        if record.norm != base.norm:
            raise UserError(f"{side.label} was measured in {record.norm}, {sides[0].label} in {base.norm}")
        if record.dataset.images_sha256 != base.dataset.images_sha256 and not unpaired:
            theirs, ours = (f"{one.dataset.name}, {_few(one.dataset.indices)}" for one in (record, base))
            raise UserError(
                f"{side.label} and {sides[0].label} were measured on different images ({theirs}; {ours}): "
                f"evaluate both on the same, or compare them --unpaired"
            )


def _few(indices: str | tuple[int, ...]) -> str:
    return indices if isinstance(indices, str) else f"{len(indices)} chosen images"


def _notes(sides: Sequence[Side], judge: _Judge, unpaired: bool) -> tuple[str, ...]:
    notes = []
    base = sides[0].units[0].record
    if all(len(side.units) == 1 for side in sides):
        notes.append(
            "One model on each side: this compares these weights, and does not show how much the numbers vary when "
            "the same recipe is trained again (for that, give several seeds on each side)."
        )
    else:
        counts = ", ".join(f"{side.label}: {len(side.units)}" for side in sides)
        notes.append(f"Trained models are compared ({counts}), by means and standard deviations over models.")
    if len(sides) > 2:
        notes.append(f"p is adjusted for {len(sides) - 1} models (Holm), in a gate for its branches too.")
    if unpaired:
        notes.append("Unpaired: the sides are treated as different images, so only larger differences are significant.")
    for side in sides:
        for unit in side.units:
            doubts = [flag.name for flag in unit.record.doubts()]
            if doubts:
                notes.append(f"The numbers of {unit.record.model.spec} are in doubt: flagged {', '.join(doubts)}.")
    for side in sides[1:]:
        record = side.units[0].record
        for what, ours, theirs in (
            ("attacks", base.attack, record.attack),
            ("engine", (base.engine.name, base.engine.version), (record.engine.name, record.engine.version)),
            ("precision", base.engine.precision, record.engine.precision),
        ):
            if ours != theirs:
                notes.append(f"{side.label} and {sides[0].label} were measured with different {what}.")
    if judge.grid and any(len(unit.record.curve) != len(judge.grid) for side in sides for unit in side.units):
        notes.append(f"The sides have different eps grids: auc is taken from {judge.grid[0]} to {judge.grid[-1]}.")
    return tuple(notes)
