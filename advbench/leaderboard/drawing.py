"""The figure of a leaderboard: accuracy against eps, and robust against clean accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from advbench import figure
from advbench.leaderboard.shown_eps import eps_label, shown_eps
from advbench.record import Record

MAX_COLOURED = 12  # the best records have a name and a colour; the other curves are grey


def to_svg(ranked: Sequence[Record], below: Sequence[Record], reference: float) -> bytes:
    """The SVG of one dataset and norm: the curves, and robust against clean accuracy with its Pareto front.

    `ranked` and `below` are those of `rank`. The metadata hold a hash of the numbers that are drawn.
    """
    records = [*ranked, *below]
    dataset, norm = records[0].dataset.name, records[0].norm
    places = [index if index < MAX_COLOURED else None for index in range(len(records))]
    lines = [_line(record, place, reference) for record, place in zip(records, places, strict=True)]
    points = [
        figure.Point(record.clean, point.accuracy, place, bool(record.doubts(reference)))
        for record, place in zip(records, places, strict=True)
        if (point := record.at(reference))
    ]
    ticks = [(eps, eps_label(eps, records)) for eps in (0.0, *shown_eps(records, reference))]
    label = eps_label(reference, records)
    digest = hashlib.sha256(repr((dataset, norm, ticks, reference, lines, points)).encode()).hexdigest()
    with figure.panels(2, f"{dataset}, {norm}") as (drawing, (curves, pareto)):
        figure.draw_curves(curves, lines, f"eps ({norm})", ticks, mark=reference)
        figure.draw_front(pareto, points, f"accuracy at eps = {label} (%)")
        return figure.render(drawing, description=f"numbers {digest}")


def _line(record: Record, place: int | None, reference: float) -> figure.Line:
    return figure.Line(
        record.model.spec + (" (doubted)" if record.doubts(reference) else ""),
        record.eps,
        [point.accuracy for point in record.curve],
        [point.ci_low for point in record.curve],
        [point.ci_high for point in record.curve],
        place,
    )
