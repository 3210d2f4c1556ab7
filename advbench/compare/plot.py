"""A comparison as a figure: the curves and the differences to the baseline, or of many models the differences alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from advbench import figure
from advbench.compare.matrix import many, names
from advbench.compare.results import Comparison, Row
from advbench.compare.sides import Side
from advbench.errors import unknown
from advbench.files import write_atomic

MAX_COLUMNS = 4  # panels of differences


def plot(comparison: Comparison, file: Path) -> None:
    """Write the figure to `file`, an .svg, .png or .pdf. Raises UserError for another kind or an unwritable file."""
    kind = file.suffix.lower().removeprefix(".")
    if kind not in figure.KINDS:
        raise unknown("kind of figure", file.suffix, [f".{known}" for known in figure.KINDS])
    write_atomic(file, _many(comparison, kind) if many(comparison) else _few(comparison, kind))


def _few(comparison: Comparison, kind: str) -> bytes:
    """The curves, and the differences along eps."""
    title, titles = f"{comparison.dataset}, {comparison.norm}", names(comparison.sides)
    ticks = [(point.eps, point.eps_text) for point in comparison.sides[0].units[0].record.curve]
    lines = [_line(side, name, place) for place, (side, name) in enumerate(zip(comparison.sides, titles, strict=True))]
    gaps = []
    for place, model in enumerate(comparison.models if comparison.rows else (), start=1):
        rows = [row for row in comparison.rows if row.model == model and _is_accuracy(row.quantity)]
        gaps.append(
            figure.Gap(
                [_eps(comparison, row) for row in rows],
                [row.difference for row in rows],
                [row.low for row in rows],
                [row.high for row in rows],
                place,
            )
        )
    bands = "95 % intervals" if _alone(comparison) else "range of the models, of one its 95 % interval"
    parts = {"curves": bands, "differences": _intervals(comparison)} if gaps else {"curves": bands}
    note = bands if len(set(parts.values())) == 1 else "; ".join(f"{what}: {text}" for what, text in parts.items())
    numbers = figure.digest(title, note, ticks, lines, gaps)
    with figure.panels(2, title, below=figure.legend_lines(len(lines), note)) as (drawing, (curves, differences)):
        xlabel = f"eps ({comparison.norm})"
        drawn = figure.draw_curves(curves, lines, xlabel, ticks)
        curves.set_title("accuracy")
        figure.draw_gaps(differences, gaps, xlabel, ticks)
        differences.set_title(figure.fit(f"difference to {titles[0]}" if gaps else "no baseline", figure.HALF))
        figure.legend(drawing, drawn, [line.title for line in lines], note)
        return figure.render(drawing, kind, numbers)


def _many(comparison: Comparison, kind: str) -> bytes:
    """The differences, a row for each model and a panel for each quantity."""
    baseline, *titles = names(comparison.sides)
    quantities = list(dict.fromkeys(row.quantity for row in comparison.rows if _is_accuracy(row.quantity)))
    wanted = np.linspace(0, len(quantities) - 1, min(MAX_COLUMNS, len(quantities))).round().astype(int)
    columns = {
        quantities[index]: [
            figure.Difference(row.difference, row.low, row.high, row.significant)
            for row in comparison.rows
            if row.quantity == quantities[index]
        ]
        for index in wanted
    }
    title = f"{comparison.dataset}, {comparison.norm}: difference of accuracy to {baseline}"
    note = f"{_intervals(comparison)}; filled: p < 0.05 (Holm)"
    if len(wanted) < len(quantities):
        note += f"; {len(wanted)} of {len(quantities)} quantities are shown"
    height = 1.0 + 0.2 * len(titles)
    with figure.panels(len(columns), title, height=height, below=1) as (drawing, axes):
        figure.draw_rows(axes, titles, columns)
        figure.legend(drawing, [], [], note)
        return figure.render(drawing, kind, figure.digest(title, note, titles, columns))


def _intervals(comparison: Comparison) -> str:
    count = len(comparison.models)
    return "95 % intervals" + (f" for all {count} models together (Bonferroni)" if count > 1 else "")


def _alone(comparison: Comparison) -> bool:
    return all(len(side.units) == 1 for side in comparison.sides)


def _is_accuracy(quantity: str) -> bool:
    return quantity == "clean" or quantity.startswith("acc@")


def _eps(comparison: Comparison, row: Row) -> float:
    texts = {f"acc@{point.eps_text}": point.eps for point in comparison.sides[0].units[0].record.curve}
    return 0.0 if row.quantity == "clean" else texts[row.quantity]


def _line(side: Side, name: str, place: int) -> figure.Line:
    """One model's curve with its intervals, or the mean of several with the band from the lowest to the highest."""
    record = side.units[0].record
    if len(side.units) == 1:
        low, high = ([getattr(point, end) for point in record.curve] for end in ("ci_low", "ci_high"))
        return figure.Line(name, record.eps, [point.accuracy for point in record.curve], low, high, place)
    shared = [eps for eps in record.eps if all(unit.record.at(eps) for unit in side.units)]
    table = np.array([[point.accuracy for eps in shared if (point := unit.record.at(eps))] for unit in side.units])
    return figure.Line(
        name, shared, table.mean(axis=0).tolist(), table.min(axis=0).tolist(), table.max(axis=0).tolist(), place,
    )  # fmt: skip
