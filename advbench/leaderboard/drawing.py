"""The figure of a leaderboard: accuracy against eps, and robust against clean accuracy."""

from __future__ import annotations

import hashlib

from advbench import figure
from advbench.leaderboard.ranking import Board
from advbench.leaderboard.shown_eps import eps_label, shown_eps
from advbench.record import Record

MAX_COLOURED = 12  # the best records have a name and a colour; the other curves are grey


def to_svg(board: Board) -> bytes:
    """The SVG of one dataset and norm: the curves, and robust against clean accuracy with its Pareto front.

    It shows the first table alone, since other protocols are not to be compared with it. The metadata hold a hash of
    the numbers that are drawn.
    """
    norm, reference = board.norm, board.reference
    table = board.tables[0] if board.tables else None
    records = table.records if table else []
    ranked = len(table.ranked) if table else 0
    lines = [_line(record, place, ranked) for place, record in enumerate(records)]
    points = [
        figure.Point(record.clean, point.accuracy, _coloured(place), place >= ranked)
        for place, record in enumerate(records)
        if (point := record.at(reference))
    ]
    title = f"{board.dataset}, {norm}" + (f": {table.protocol.title}" if table else "")
    ticks = [(eps, eps_label(eps, records)) for eps in (0.0, *shown_eps(records, reference))]
    label = eps_label(reference, records)
    digest = hashlib.sha256(repr((title, norm, ticks, reference, lines, points)).encode()).hexdigest()
    with figure.panels(3, title) as (drawing, (curves, pareto, names)):
        figure.draw_curves(curves, lines, f"eps ({norm})", ticks, mark=reference, names=names)
        figure.draw_front(pareto, points, f"accuracy at eps = {label} (%)")
        return figure.render(drawing, description=f"numbers {digest}")


def _coloured(place: int) -> int | None:
    return place if place < MAX_COLOURED else None


def _line(record: Record, place: int, ranked: int) -> figure.Line:
    return figure.Line(
        record.model.title + (" (not ranked)" if place >= ranked else ""),
        record.eps,
        [point.accuracy for point in record.curve],
        [point.ci_low for point in record.curve],
        [point.ci_high for point in record.curve],
        _coloured(place),
    )
