"""The results of a comparison, as plain values for tables, reports and figures."""

from __future__ import annotations

from dataclasses import dataclass

from advbench.compare.sides import Side


@dataclass(frozen=True)
class Row:
    """One model and one quantity against the baseline: a fraction for accuracies, natural units for the others.

    `low` and `high` bound the 95 % interval of `difference`. `n` counts the compared samples, or the models where a
    side has several. `p_holm` is `p` adjusted for the number of models. `baseline_sd` and `value_sd` are standard
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


@dataclass(frozen=True)
class Check:
    """One test of a branch, with its numbers: whether the drop exceeds the tolerance, and the p-value of "no drop"."""

    text: str
    value: float
    bound: float
    exceeded: bool
    p: float


@dataclass(frozen=True)
class Finding:
    """One branch for one model. `p_holm`: the largest p of its checks, adjusted for all branches and models."""

    model: str
    branch: str
    checks: tuple[Check, ...]
    p_holm: float
    failed: bool


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


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: the sides, baseline first, a row for each model and quantity, and the verdict."""

    sides: tuple[Side, ...]
    dataset: str
    norm: str
    rows: tuple[Row, ...]
    gate: Gate | None
    notes: tuple[str, ...]

    @property
    def baseline(self) -> str:
        return self.sides[0].label

    @property
    def models(self) -> list[str]:
        return [side.label for side in self.sides[1:]]
