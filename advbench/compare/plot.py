"""A comparison as a figure: the accuracy curves, and the differences to the baseline with their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from advbench import figure
from advbench.compare.results import Comparison
from advbench.compare.sides import Side
from advbench.errors import unknown
from advbench.files import write_atomic


def plot(comparison: Comparison, file: Path) -> None:
    """Write the figure to `file`, an .svg, .png or .pdf. Raises UserError for another kind or an unwritable file."""
    kind = file.suffix.lower().removeprefix(".")
    if kind not in figure.KINDS:
        raise unknown("kind of figure", file.suffix, [f".{known}" for known in figure.KINDS])
    texts = {point.eps: point.eps_text for point in comparison.sides[0].units[0].record.curve}
    sizes = {f"acc@{text}": eps for eps, text in texts.items()}
    lines = [_line(side, place) for place, side in enumerate(comparison.sides)]
    gaps = []
    for place, model in enumerate(comparison.models if comparison.rows else (), start=1):
        rows = [row for row in comparison.rows if row.model == model]
        at = [
            (0.0 if row.quantity == "clean" else sizes[row.quantity], row) for row in rows if _is_accuracy(row.quantity)
        ]
        gaps.append(
            figure.Gap(
                [eps for eps, _ in at],
                [row.difference for _, row in at],
                [row.low for _, row in at],
                [row.high for _, row in at],
                place,
            )
        )
    ticks = list(texts.items())
    with figure.panels(2, f"{comparison.dataset}, {comparison.norm}") as (drawing, (curves, differences)):
        figure.draw_curves(curves, lines, f"eps ({comparison.norm})", ticks)
        figure.draw_gaps(
            differences,
            gaps,
            f"eps ({comparison.norm})",
            f"difference to {comparison.baseline or 'no baseline'}",
            ticks,
        )
        write_atomic(file, figure.render(drawing, kind))


def _is_accuracy(quantity: str) -> bool:
    return quantity == "clean" or quantity.startswith("acc@")


def _line(side: Side, place: int) -> figure.Line:
    """One model's curve with its intervals, or the mean of several with the band from the lowest to the highest."""
    record = side.units[0].record
    if len(side.units) == 1:
        low, high = ([getattr(point, name) for point in record.curve] for name in ("ci_low", "ci_high"))
        return figure.Line(side.label, record.eps, [point.accuracy for point in record.curve], low, high, place)
    shared = [eps for eps in record.eps if all(unit.record.at(eps) for unit in side.units)]
    table = np.array([[point.accuracy for eps in shared if (point := unit.record.at(eps))] for unit in side.units])
    return figure.Line(
        f"{side.label} ({len(side.units)} models)", shared,
        table.mean(axis=0).tolist(), table.min(axis=0).tolist(), table.max(axis=0).tolist(), place,
    )  # fmt: skip
