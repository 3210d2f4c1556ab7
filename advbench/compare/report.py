"""A comparison as text for people (Markdown) and for programs (CSV, JUnit XML, JSON Lines)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from typing import Any
from xml.etree import ElementTree

from advbench.compare.results import Check, Comparison, Finding, Gate, Row
from advbench.compare.summary import of_measurements
from advbench.escape import csv_text, markdown, visible
from advbench.statistics import decimals

HEADER = ("model", "quantity", "baseline", "value", "difference", "95 % interval", "p")
COLUMNS = (
    "model", "baseline", "dataset", "norm", "quantity", "baseline_value", "value", "difference", "low", "high", "p",
    "p_holm", "test", "n", "baseline_sd", "value_sd", "caveat", "gate", "bound", "failed",
    "level",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row under `HEADER`: in percent and percentage points for all but median_norm, with Holm's p."""

    def spread(sd: str) -> str:
        return "" if getattr(row, sd) is None else f" ± {number(row, sd)}"

    return (
        visible(row.model),
        visible(row.quantity),
        number(row, "baseline") + spread("baseline_sd"),
        number(row, "value") + spread("value_sd"),
        number(row, "difference", "+"),
        f"{number(row, 'low', '+')} to {number(row, 'high', '+')}",
        p_text(row.p_holm),
    )


def number(row: Row, field: str, sign: str = "") -> str:
    """A field of a row as a table shows it: in percent or percentage points, median_norm in units of the norm."""
    value = getattr(row, field)
    if row.quantity == "median_norm":
        return f"{value:{sign}z.4g}"
    return f"{100 * value:{sign}z.{decimals(row.n)}f}"


def p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(comparison: Comparison) -> str:
    """One line: whether the gate failed, and for which models."""
    gate = comparison.gate
    of_floors = gate is not None and "baseline" not in gate.expression
    against = f" against {comparison.baseline}" if comparison.baseline and not of_floors else ""
    if comparison.refused:
        return f"No verdict{against}: {comparison.refused}"
    if gate is None:
        return f"Compared with {comparison.baseline} (no gate)"
    failed = list(dict.fromkeys(finding.model for finding in gate.findings if finding.failed))
    return f"Regression: {', '.join(failed)}{against}" if failed else f"No regression{against}"


def headline(comparison: Comparison) -> str:
    """The verdict, after how the sides were measured differently, if they were."""
    return f"{comparison.caveat}. {verdict(comparison)}" if comparison.caveat else verdict(comparison)


def rule(gate: Gate) -> str:
    """When a branch of the gate fails, in words."""
    tested = (
        "by the tolerance alone (strict)" if gate.strict else f"significantly (against no drop, p < {gate.alpha:g})"
    )
    return f"fails where a value is below its floor, or dropped beyond its tolerance, {tested}"


def reason(finding: Finding, strict: bool) -> str:
    """Why a branch did or did not fail, with its numbers."""
    parts = [_reason(check) for check in finding.checks]
    if finding.p_holm is not None:
        parts.append("p not required (strict)" if strict else f"one-sided p {p_text(finding.p_holm)}")
    return "; ".join(parts)


def _reason(check: Check) -> str:
    if check.holds:
        return f"{check.text}: {check.holds}"

    def number(value: float) -> str:
        return f"{check.scale * value:z.4g}"

    side = "below" if check.exceeded else "not below"
    text = f"{check.text}: {number(check.value)} is {side} {number(check.bound)}"
    if check.drop is None:
        return text
    drop = check.drop
    if drop.drop < 0:
        text += f", a gain of {number(-drop.drop)} ({number(-drop.high)} to {number(-drop.low)})"
    else:
        text += f", a drop of {number(drop.drop)} ({number(drop.low)} to {number(drop.high)})"
    return text if drop.least is None else f"{text}; a drop is significant from {number(drop.least)} on"


def to_csv(comparison: Comparison) -> str:
    """CSV: one row for each model and quantity, in full precision, accuracies as fractions.

    They are followed by one row for each condition of each branch of the gate, which `gate` names: its `value`, its
    `bound`, the branch's p and whether the branch `failed`.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    common = {"baseline": comparison.baseline, "dataset": comparison.dataset, "norm": comparison.norm}
    found: list[dict[str, Any]] = [
        {**dataclasses.asdict(row), "baseline_value": row.baseline, **common} for row in comparison.rows
    ]
    found += [
        {
            "model": finding.model, "quantity": check.text.split()[0], "value": check.value, "bound": check.bound,
            "p_holm": finding.p_holm, "gate": finding.branch, "failed": str(finding.failed).lower(), **common,
        }
        for finding in (comparison.gate.findings if comparison.gate else ()) for check in finding.checks
    ]  # fmt: skip
    for values in found:
        values["caveat"] = comparison.caveat
        writer.writerow({key: csv_text(value) if isinstance(value, str) else value for key, value in values.items()})
    return stream.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """A Markdown summary for a pull request: verdict, gate, differences, curves, flags, protocol, notes."""
    gate, baseline = comparison.gate, comparison.baseline
    lines = [f"### {markdown(headline(comparison))}", ""]
    if gate is not None:
        lines += [f"Gate: {markdown(gate.expression)}; {markdown(rule(gate))}.", ""]
        for finding in gate.findings:
            mark = "not judged" if comparison.refused else "**failed**" if finding.failed else "passed"
            words = [finding.model, reason(finding, gate.strict) or finding.branch]
            lines.append(f"- {mark}: {': '.join(map(markdown, words))}")
        lines.append("")
    if comparison.rows:
        lines += [
            f"{markdown(comparison.dataset)}, {markdown(comparison.norm)}; percent and percentage points, median_norm "
            f"in units of the norm; baseline {markdown(baseline or '')}.",
            "",
            *_table(comparison),
            "",
        ]
    lines += of_measurements(comparison.sides)
    lines += [f"- {markdown(note)}" for note in comparison.notes]
    return "\n".join(lines) + "\n"


def _table(comparison: Comparison) -> list[str]:
    """A Markdown table of the rows, or the matrix where the models are many."""
    from advbench.compare.matrix import STAR, many, matrix

    if not many(comparison):
        rows = [f"| {' | '.join(markdown(cell) for cell in cells(row))} |" for row in comparison.rows]
        return [f"| {' | '.join(HEADER)} |", "|:--|:--|--:|--:|--:|--:|--:|", *rows]
    header, body = matrix(comparison)
    return [
        f"The baseline, and differences to it; {markdown(STAR)}.",
        "",
        f"| {' | '.join(header)} |",
        f"|:--|{'--:|' * (len(header) - 1)}",
        *(f"| {' | '.join(markdown(cell.strip()) for cell in line)} |" for line in body),
    ]


def to_junit(comparison: Comparison) -> str:
    """JUnit XML: a test case for each model and branch or, without a gate, quantity. All have failed if refused."""
    gate, refused = comparison.gate, visible(comparison.refused)
    cases: list[tuple[str, str, str, bool]]  # model, name, text, failed
    if gate is not None:
        cases = [(one.model, one.branch, reason(one, gate.strict), one.failed) for one in gate.findings]
    elif refused:
        cases = [(model, "compare", "", False) for model in comparison.models]
    else:
        cases = [(row.model, row.quantity, " ".join(cells(row)[2:]), False) for row in comparison.rows]
    failures = sum(failed for *_, failed in cases)
    suite = ElementTree.Element(
        "testsuite",
        name=visible(": ".join(filter(None, ["advbench compare", comparison.caveat]))),
        tests=str(len(cases)),
        failures=str(len(cases) if refused else failures),
        errors="0",
        skipped="0",
    )
    for model, name, text, failed in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=visible(model), name=visible(name))
        if refused:
            ElementTree.SubElement(case, "failure", message=refused, type="refused").text = refused
        elif failed:
            ElementTree.SubElement(case, "failure", message=visible(text), type="regression").text = visible(text)
        else:
            ElementTree.SubElement(case, "system-out").text = visible(text)
    notes = "\n".join(visible(note) for note in (headline(comparison), *comparison.notes))
    ElementTree.SubElement(suite, "system-out").text = notes
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def to_json(comparison: Comparison) -> str:
    """JSON Lines: one object for each compared model, with its rows, its findings and the verdict on it.

    A comparison that is refused has no verdict: `failed` is null, and `refused` says why.
    """
    gate = comparison.gate
    lines = []
    for model in dict.fromkeys([*comparison.models, *(finding.model for finding in (gate.findings if gate else ()))]):
        findings = [finding for finding in gate.findings if finding.model == model] if gate else []
        failed = None if comparison.refused else any(finding.failed for finding in findings)
        found = {
            "model": model,
            "baseline": comparison.baseline,
            "dataset": comparison.dataset,
            "norm": comparison.norm,
            "caveat": comparison.caveat,
            "refused": comparison.refused,
            "rows": [dataclasses.asdict(row) for row in comparison.rows if row.model == model],
            "gate": None
            if gate is None
            else {
                "expression": gate.expression,
                "alpha": gate.alpha,
                "strict": gate.strict,
                "failed": failed,
                "findings": [dataclasses.asdict(finding) for finding in findings],
            },
            "notes": comparison.notes,
        }
        lines.append(json.dumps(_finite(found), allow_nan=False))
    return "\n".join(lines) + "\n"


def _finite(value: Any) -> Any:
    """`value` with None in place of infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
