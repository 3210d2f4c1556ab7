"""A comparison as text for people (Markdown) and for programs (CSV, JUnit XML, JSON Lines)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from typing import Any
from xml.etree import ElementTree

from advbench.compare.results import Comparison, Finding, Row
from advbench.escape import csv_text, markdown, visible

HEADER = ("model", "quantity", "baseline", "value", "difference", "95 % interval", "p")
COLUMNS = (
    "model", "baseline", "dataset", "norm", "quantity", "baseline_value", "value", "difference", "low", "high", "p",
    "p_holm", "test", "n", "baseline_sd", "value_sd",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row under `HEADER`: in percent and percentage points for all but median_norm, with Holm's p."""

    def number(value: float, sign: str = "") -> str:
        if row.quantity == "median_norm":
            return f"{value:{sign}.4g}"
        return f"{100 * value:{sign}.{2 if row.n >= 10_000 else 1}f}"

    def spread(sd: float | None) -> str:
        return "" if sd is None else f" ± {number(sd)}"

    return (
        visible(row.model),
        visible(row.quantity),
        number(row.baseline) + spread(row.baseline_sd),
        number(row.value) + spread(row.value_sd),
        number(row.difference, "+"),
        f"{number(row.low, '+')} to {number(row.high, '+')}",
        p_text(row.p_holm),
    )


def p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(comparison: Comparison) -> str:
    """One line: whether the gate failed, and for which models."""
    gate = comparison.gate
    if gate is None:
        return f"Compared with {comparison.baseline} (no gate)"
    failed = list(dict.fromkeys(finding.model for finding in gate.findings if finding.failed))
    if failed:
        return f"Regression: {', '.join(failed)} against {comparison.baseline}"
    return f"No regression against {comparison.baseline}"


def reason(finding: Finding, strict: bool) -> str:
    """Why a branch did or did not fail, with its numbers."""
    parts = []
    for check in finding.checks:
        scale = 100 if check.text.startswith(("clean", "acc@")) else 1
        side = "below" if check.exceeded else "not below"
        parts.append(f"{check.text}: {scale * check.value:.4g} is {side} {scale * check.bound:.4g}")
    return f"{'; '.join(parts)}; {'p not required (strict)' if strict else f'p {p_text(finding.p_holm)}'}"


def to_csv(comparison: Comparison) -> str:
    """CSV: one row for each model and quantity, in full precision, accuracies as fractions."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows:
        values: tuple[Any, ...] = (
            row.model, comparison.baseline, comparison.dataset, comparison.norm, row.quantity, row.baseline, row.value,
            row.difference, row.low, row.high, row.p, row.p_holm, row.test, row.n, row.baseline_sd, row.value_sd,
        )  # fmt: skip
        writer.writerow([csv_text(value) if isinstance(value, str) else value for value in values])
    return stream.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """A Markdown summary for a pull request: verdict, gate, table, notes."""
    gate = comparison.gate
    lines = [f"### {markdown(verdict(comparison))}", ""]
    if gate is not None:
        rule = "tolerance alone (strict)" if gate.strict else f"beyond tolerance and p < {gate.alpha:g}"
        lines += [f"Gate: {markdown(gate.expression)}; fails when {rule}.", ""]
        for finding in gate.findings:
            mark = "**failed**" if finding.failed else "passed"
            lines.append(f"- {mark}: {markdown(finding.model)}: {markdown(reason(finding, gate.strict))}")
        lines.append("")
    lines += [
        f"{markdown(comparison.dataset)}, {markdown(comparison.norm)}; percent and percentage points, median_norm in "
        f"units of the norm; baseline {markdown(comparison.baseline)}.",
        "",
        f"| {' | '.join(HEADER)} |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    lines += [f"| {' | '.join(markdown(cell) for cell in cells(row))} |" for row in comparison.rows]
    lines += ["", *(f"- {markdown(note)}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def to_junit(comparison: Comparison) -> str:
    """JUnit XML: a test case for each branch and model or, without a gate, for each row, none of which can fail."""
    gate = comparison.gate
    failures = sum(finding.failed for finding in gate.findings) if gate else 0
    count = len(gate.findings) if gate else len(comparison.rows)
    suite = ElementTree.Element(
        "testsuite", name="advbench compare", tests=str(count), failures=str(failures), errors="0", skipped="0"
    )
    if gate is None:
        for row in comparison.rows:
            case = ElementTree.SubElement(suite, "testcase", classname=visible(row.model), name=visible(row.quantity))
            ElementTree.SubElement(case, "system-out").text = " ".join(cells(row)[2:])
    else:
        for finding in gate.findings:
            case = ElementTree.SubElement(
                suite, "testcase", classname=visible(finding.model), name=visible(finding.branch)
            )
            text = visible(reason(finding, gate.strict))
            if finding.failed:
                ElementTree.SubElement(case, "failure", message=text, type="regression").text = text
            else:
                ElementTree.SubElement(case, "system-out").text = text
    notes = "\n".join(visible(note) for note in (verdict(comparison), *comparison.notes))
    ElementTree.SubElement(suite, "system-out").text = notes
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def to_json(comparison: Comparison) -> str:
    """JSON Lines: one object for each compared model, with its rows, its findings and the verdict on it."""
    gate = comparison.gate
    lines = []
    for model in comparison.models:
        findings = [finding for finding in gate.findings if finding.model == model] if gate else []
        found = {
            "model": model,
            "baseline": comparison.baseline,
            "dataset": comparison.dataset,
            "norm": comparison.norm,
            "rows": [dataclasses.asdict(row) for row in comparison.rows if row.model == model],
            "gate": None
            if gate is None
            else {
                "expression": gate.expression,
                "alpha": gate.alpha,
                "strict": gate.strict,
                "failed": any(finding.failed for finding in findings),
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
