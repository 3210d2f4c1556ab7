"""The results of a comparison, as plain values for tables, reports and figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal

from advbench.aligned import plain_table
from advbench.compare.sides import Side
from advbench.errors import UserError
from advbench.statistics import ALPHA, LEVEL

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Row:
    """One model and one quantity against the baseline: a fraction for accuracies and auc, else in units of the norm.

    `low` and `high` bound the interval of `difference`. The intervals of one quantity hold for all models together with
    95 % (Bonferroni), each alone with `level`. `n` counts the compared samples, or the models where a side has several.
    `p` is two-sided, `p_holm` is adjusted for the number of models (Holm). `baseline_sd` and `value_sd` are standard
    deviations over models, None for one model.
    """

    model: str
    quantity: str
    baseline: float
    value: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    test: str
    n: int
    baseline_sd: float | None = None
    value_sd: float | None = None
    level: float = LEVEL

    @property
    def significant(self) -> bool:
        """Whether there is a difference, at 5 % for all models together."""
        return self.p_holm < ALPHA


@dataclass(frozen=True)
class Drop:
    """What a relative condition rests on: the drop from the baseline, its interval, and `p` of "there is no drop".

    The interval is that of `Row`.
    `least`: the smallest drop that would have been significant in this gate, None if unknown. `p_zero`: the p-value
    that a fall to 0 would have had; `few`: what would make it smaller, more images or more seeds.
    """

    drop: float
    low: float
    high: float
    p: float
    p_zero: float
    least: float | None
    few: Literal["images", "seeds"] = "images"


@dataclass(frozen=True)
class Check:
    """One condition of a branch, with its numbers, in the units of `Row`; `scale` makes them those of the tables.

    `bound`: the floor, or the baseline less the tolerance. `drop` is None for a floor, and for a relative condition
    that holds whatever was measured, for the reason `holds`.
    """

    text: str
    scale: float
    value: float
    bound: float
    exceeded: bool
    drop: Drop | None = None
    holds: str = ""


@dataclass(frozen=True)
class Finding:
    """One branch for one model.

    `p_holm`: the largest p of its relative conditions, adjusted for all branches and models. `p_zero`: what it would
    have been after a fall to 0. Both are None where no drop had to be tested.
    """

    model: str
    branch: str
    checks: tuple[Check, ...] = ()
    p_holm: float | None = None
    p_zero: float | None = None
    failed: bool = False


@dataclass(frozen=True)
class Gate:
    """The verdict of a gate: `failed` when any branch failed for any model."""

    expression: str
    alpha: float
    strict: bool
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        return any(finding.failed for finding in self.findings)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`: the sides, a row for each model and quantity, and the verdict.

    `baseline` is the label of the first side, None if there is no baseline. `caveat`: how the sides were measured
    differently, as far as options allow it. `refused`: why there is no verdict.
    """

    sides: tuple[Side, ...]
    baseline: str | None
    dataset: str
    norm: str
    rows: tuple[Row, ...] = ()
    gate: Gate | None = None
    caveat: str = ""
    refused: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Comparison on {self.dataset}, {self.norm}: {self.verdict}>"

    def __str__(self) -> str:
        """The table of differences, in percent, and the verdict and notes."""
        from advbench.compare.report import HEADER, cells

        rows = [plain_table(HEADER, [cells(row) for row in self.rows])] if self.rows else []
        return "\n".join([*([self.caveat] if self.caveat else []), *rows, self.verdict, *self.notes])

    @property
    def models(self) -> list[str]:
        """The sides that are compared with the baseline; all if there is none."""
        return [side.label for side in self.sides[self.baseline is not None :]]

    @property
    def failed(self) -> bool:
        """Whether there is a gate, and it failed."""
        return self.gate is not None and self.gate.failed

    @property
    def verdict(self) -> str:
        """One line: whether the gate failed, and for which models."""
        from advbench.compare.report import verdict

        return verdict(self)

    @property
    def report(self) -> str:
        """Markdown: verdict, gate, differences, curves, flags, protocol and notes."""
        from advbench.compare.report import to_markdown

        return to_markdown(self)

    def frame(self) -> DataFrame:
        """A pandas DataFrame of the rows, with the fields of `Row` as columns."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows], columns=[field.name for field in fields(Row)])


class Refused(UserError):
    """A comparison that cannot be made, or not believed. `comparison` holds what a report can say about it."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison.refused)
        self.comparison = comparison
