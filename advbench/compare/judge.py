"""The numbers of each side, and the tests of their differences to the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from advbench import statistics
from advbench.compare.gate import Branch, Quantity, Test
from advbench.compare.results import Check, Drop, Finding, Row
from advbench.compare.sides import Measured, Side, common_grid
from advbench.errors import UserError
from advbench.statistics import Estimate

Samples = NDArray[Any]
Asked = tuple[Side, Branch]  # a branch of the gate, asked of one side


class Levels(TypedDict):
    """The coverage of intervals, and the level for the smallest significant drop."""

    level: float
    alpha: float


class Judge:
    """Compares `others` with `base`.

    The intervals of one quantity cover all true differences at once with a probability of 95 % (Bonferroni): each has
    coverage `level`.
    The conditions of `asked` that are tested share the level `alpha`, which is for the smallest drop that could have
    been significant.
    """

    def __init__(
        self, base: Side, others: Sequence[Side], asked: Sequence[Asked] = (), *, paired: bool, alpha: float
    ) -> None:
        self.base, self.others, self.paired = base, others, paired
        units = [unit for side in (base, *others) for unit in side.units]
        self.grid = common_grid(units)
        self.quantities = [Quantity("clean"), *(Quantity("acc", eps) for eps in self.grid if eps.value > 0)]
        if any(eps.value > 0 for eps in self.grid):
            self.quantities.append(Quantity("auc"))
        if all(unit.record.median_norm is not None for unit in units):
            self.quantities.append(Quantity("median_norm"))
        self.level = 1 - (1 - statistics.LEVEL) / max(1, len(others))
        self._known: dict[tuple[str, str], Estimate] = {}
        self.alpha = alpha / max(1, sum(self._is_tested(*one) for one in asked))
        self._levels = Levels(level=self.level, alpha=self.alpha)

    def rows(self) -> tuple[Row, ...]:
        """A row for each model and quantity, by model."""
        found = []
        for quantity in self.quantities:
            estimates = [self.estimate(side, quantity) for side in self.others]
            adjusted = statistics.holm([estimate.p for estimate in estimates])
            old, old_sd = self.value(self.base, quantity)
            for side, estimate, p_holm in zip(self.others, estimates, adjusted, strict=True):
                new, new_sd = self.value(side, quantity)
                test, n = self.test(side, quantity)
                found.append(
                    Row(side.label, str(quantity), old, new, *estimate[:4], p_holm, test, n, old_sd, new_sd, self.level)
                )  # fmt: skip
        order = {side.label: index for index, side in enumerate(self.others)}
        return tuple(sorted(found, key=lambda row: order[row.model]))

    def check(self, side: Side, test: Test) -> Check:
        """A condition, which was measured."""
        if not test.relative:
            return floor(side, test)
        quantity = as_clean(test.quantity)
        value, baseline = (self.value(one, quantity)[0] for one in (side, self.base))
        holds = self._holds(side, test)
        drop = None if holds else self.drop(side, quantity)
        exceeded = not holds and test.fires(value, baseline)
        return Check(test.text, quantity.scale, value, baseline - test.bound, exceeded, drop, holds)

    def _is_tested(self, side: Side, branch: Branch) -> bool:
        relative = [test for test in branch.tests if test.relative]
        return bool(relative) and not any(self._holds(side, test) for test in relative)

    def _holds(self, side: Side, test: Test) -> str:
        """Why a relative condition holds whatever the numbers; empty where they decide."""
        quantity = as_clean(test.quantity)
        if side.ids == self.base.ids:
            return "identical to the baseline"
        baseline = self.value(self.base, quantity)[0]
        if test.fires(0.0, baseline):
            return ""
        return f"cannot drop by that much: the baseline has {quantity.scale * baseline:.4g}"

    def drop(self, side: Side, quantity: Quantity) -> Drop:
        found = self.estimate(side, quantity)
        tests = self._tests(quantity, self._samples(self.base, quantity), self._samples(side, quantity, times=0))
        p_zero = [test.p_drop for test in tests]  # over images, then over models if there are several
        few: Literal["images", "seeds"] = "images" if max(p_zero) == p_zero[0] else "seeds"
        return Drop(-found.difference, -found.high, -found.low, found.p_drop, max(p_zero), found.least, few)

    def value(self, side: Side, quantity: Quantity) -> tuple[float, float | None]:
        """The mean over the side's models, and their standard deviation, None for a single model."""
        values = _numbers(quantity, self._samples(side, quantity))
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None

    def estimate(self, side: Side, quantity: Quantity) -> Estimate:
        """The difference to the baseline."""
        key = (side.label, str(quantity))
        if key not in self._known:
            self._known[key] = self._estimate(quantity, *(self._samples(one, quantity) for one in (self.base, side)))
        return self._known[key]

    def test(self, side: Side, quantity: Quantity) -> tuple[str, int]:
        """The name of the test of `estimate`, and how many samples or models it compares."""
        counts = [len(one.units) for one in (self.base, side)]
        if max(counts) > 1:
            t = "Welch's t" if min(counts) > 1 else "Student's t, one model against several,"
            return f"{t} over models and {'paired ' * self.paired}permutation over images", sum(counts)
        images = [one.units[0].record.n for one in (self.base, side)]
        if quantity.is_accuracy:
            return ("exact McNemar", images[1]) if self.paired else ("Fisher's exact", sum(images))
        return ("paired permutation", images[1]) if self.paired else ("permutation", sum(images))

    def _estimate(self, quantity: Quantity, old: Sequence[Samples], new: Sequence[Samples]) -> Estimate:
        over_images, *over_models = self._tests(quantity, old, new)
        return statistics.worse(over_models[0], over_images) if over_models else over_images

    def _tests(self, quantity: Quantity, old: Sequence[Samples], new: Sequence[Samples]) -> list[Estimate]:
        """The test over images and, where a side has several models, that over models."""
        if len(old) == len(new) == 1:
            return [self._over_images(quantity, old[0], new[0])]
        if quantity.kind == "median_norm":
            means = _mean_distances(old, new)
        else:
            means = [np.mean(several, axis=0) for several in (old, new)]
        over_models = statistics.seeds(_numbers(quantity, old), _numbers(quantity, new), **self._levels)
        return [self._over_images(quantity, *means), over_models]

    def _over_images(self, quantity: Quantity, old: Samples, new: Samples) -> Estimate:
        if quantity.kind == "median_norm":
            if self.paired:
                return statistics.paired_medians(old, new, **self._levels)
            return statistics.unpaired_samples(old, new, np.median, **self._levels)
        if old.dtype == new.dtype == np.bool_:
            if self.paired:
                return statistics.paired_accuracies(old, new, **self._levels)
            counts = ((int(old.sum()), len(old)), (int(new.sum()), len(new)))
            return statistics.unpaired_accuracies(*counts, **self._levels)
        means = statistics.paired_means if self.paired else statistics.unpaired_samples
        return means(old.astype(np.float64), new.astype(np.float64), **self._levels)

    def _samples(self, side: Side, quantity: Quantity, times: int = 1) -> list[Samples]:
        """For each model (N,): whether it is right about each sample, the sample's area, or its distance.

        `times` 0 instead of 1 makes all of them 0.
        """
        found = [self._of(unit, quantity) for unit in side.units]
        return found if times else [np.zeros_like(one) for one in found]

    def _of(self, unit: Measured, quantity: Quantity) -> Samples:
        if quantity.kind == "clean":
            return unit.fates.clean
        if quantity.kind == "median_norm":
            return unit.fates.distances(unit.record.eps)
        if quantity.eps is not None:
            return _standing(unit, quantity.eps.value)
        eps = [size.value for size in self.grid]
        standing = np.stack([_standing(unit, value) for value in eps]).astype(np.float64)
        if len(eps) == 1:
            return np.asarray(standing[0])
        return np.asarray(np.trapezoid(standing, eps, axis=0) / (eps[-1] - eps[0]))


def findings(asked: Sequence[Asked], judge: Judge | None, *, alpha: float, strict: bool) -> tuple[Finding, ...]:
    """Which branches failed. Without a `judge`, there are only floors."""
    checks = [
        tuple(judge.check(side, test) if judge else floor(side, test) for test in branch.tests)
        for side, branch in asked
    ]
    drops = [[check.drop for check in several if check.drop] for several in checks]
    tested = [
        index for index, several in enumerate(checks) if drops[index] and not any(check.holds for check in several)
    ]
    p_holm, p_zero = (
        dict(zip(tested, statistics.holm(found), strict=True))
        for found in (
            [max(drop.p for drop in drops[index]) for index in tested],
            [max(drop.p_zero for drop in drops[index]) for index in tested],
        )
    )
    return tuple(
        Finding(
            side.label, str(branch), several, p_holm.get(index), p_zero.get(index),
            failed=all(check.exceeded for check in several) and (strict or p_holm.get(index, 0.0) < alpha),
        )
        for index, ((side, branch), several) in enumerate(zip(asked, checks, strict=True))
    )  # fmt: skip


def floor(side: Side, test: Test) -> Check:
    """An absolute condition: the number of the record itself decides."""
    quantity = as_clean(test.quantity)
    value = float(np.mean([_recorded(unit, quantity) for unit in side.units]))
    return Check(test.text, quantity.scale, value, test.bound, test.fires(value, 0.0))


def check_measured(asked: Sequence[Asked], base: Side | None, others: Sequence[Side]) -> None:
    """Raise UserError for a condition that names what was not measured: on its side and, if relative, on `base`.

    A relative auc is that over the baseline's eps, at each of which all sides have to be measured.
    """
    for side, branch in asked:
        for test in branch.tests:
            sides = [base, side] if base and test.relative else [side]
            units = [unit for one in sides for unit in one.units]
            if test.quantity.kind == "auc" and base and test.relative:
                curve = base.units[0].record.curve
                if not any(point.eps > 0 for point in curve):
                    raise UserError(f"{base.label} was measured at no eps above 0, so it has no auc: gate on clean")
                if len(common_grid([unit for one in (base, *others) for unit in one.units])) < len(curve):
                    grids = "; ".join(f"{one.label}: {', '.join(point.eps_text for point in one.units[0].record.curve)}"
                                      for one in (base, *others))  # fmt: skip
                    raise UserError(
                        f"the baseline's auc is over its eps, which were not all measured on each side ({grids}): "
                        f"measure with --eps {','.join(point.eps_text for point in curve)}"
                    )
            for record in (unit.record for unit in units):
                eps = as_clean(test.quantity).eps
                if eps is not None and record.at(eps.value) is None:
                    sizes = ", ".join(point.eps_text for point in record.curve)
                    raise UserError(
                        f"{record.model.title} was not measured at {test.quantity.eps}: choose from {sizes}"
                    )
                if test.quantity.kind == "median_norm" and record.median_norm is None:
                    raise UserError(
                        "median_norm is not known on every side: measure with a minimum-norm attack, or gate on auc or "
                        "acc@EPS"
                    )


def as_clean(quantity: Quantity) -> Quantity:
    """`quantity`, but "clean" for acc@0."""
    return Quantity("clean") if quantity.eps is not None and quantity.eps.value == 0 else quantity


def _recorded(unit: Measured, quantity: Quantity) -> float:
    point = None if quantity.eps is None else unit.record.at(quantity.eps.value)
    return point.accuracy if point is not None else float(getattr(unit.record, quantity.kind))


def _numbers(quantity: Quantity, models: Sequence[Samples]) -> list[float]:
    """The number of each model."""
    centre = np.median if quantity.kind == "median_norm" else np.mean
    return [float(centre(samples)) for samples in models]


def _mean_distances(*sides: Sequence[Samples]) -> list[Samples]:
    """For each side (N,) the means over its models of every sample's distance, inf where no model's is known.

    The means are taken on the scale d / (d + m), of which m is the median of all known distances: a distance that is
    not known, of a sample that stands, counts as 1 there, however far away others' distances are.
    """
    every = np.concatenate([one for models in sides for one in models])
    known = every[np.isfinite(every) & (every > 0)]
    middle = np.median(known) if known.size else 1.0
    left = [np.mean([middle / (one + middle) for one in models], axis=0) for models in sides]
    with np.errstate(divide="ignore"):
        return [middle / share - middle for share in left]


def _standing(unit: Measured, eps: float) -> NDArray[np.bool_]:
    return unit.fates.standing(int(np.argmin(np.abs(np.asarray(unit.record.eps) - eps))))
