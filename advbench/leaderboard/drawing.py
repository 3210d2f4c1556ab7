"""The figure of a leaderboard: accuracy against eps, and robust against clean accuracy."""

from __future__ import annotations

from advbench import figure
from advbench.leaderboard.ranking import Board
from advbench.leaderboard.shown_eps import eps_label, shown_eps
from advbench.record import Record, labels
from advbench.statistics import wilson

MAX_NAMED = 12  # the best records have a name and a colour; the others are grey


def to_svg(board: Board) -> bytes:
    """The SVG of one dataset and norm: the curves, and robust against clean accuracy with its Pareto front.

    It shows the first table alone, since other protocols are not to be compared with it. The metadata hold a hash of
    the numbers that are drawn.
    """
    return draw(board)


def draw(board: Board, kind: str = "svg") -> bytes:
    """The figure of `to_svg` as one of figure.KINDS."""
    norm, reference = board.norm, board.reference
    table = board.tables[0] if board.tables else None
    records = table.records if table else []
    ranked = len(table.ranked) if table else 0
    marks = [str(place + 1) if place < ranked else chr(ord("a") + place - ranked) for place in range(MAX_NAMED)]
    places = [place if place < MAX_NAMED else None for place in range(len(records))]
    lines: list[figure.Line] = []
    points: list[figure.Point] = []
    bands: list[figure.Proved] = []
    for place, record, name in zip(places, records, labels(records), strict=True):
        doubted = len(lines) >= ranked
        mark = "" if place is None else marks[place]
        title = f"{name} (not ranked)" if doubted else name
        lines.append(figure.Line(title, *_curve(record), place, mark, doubted))
        if place is not None and (proved := [one for one in record.curve if one.certified is not None]):
            eps, certified = [one.eps for one in proved], [one.certified or 0.0 for one in proved]
            bands.append(figure.Proved(eps, certified, [one.accuracy for one in proved], place))
        if point := record.at(reference):
            points.append(figure.Point(record.clean, point.accuracy, place, mark, doubted))
    title = f"{board.dataset}, {norm}" + (f": {table.protocol.title}" if table else "")
    ticks = [(eps, eps_label(eps, records)) for eps in (0.0, *shown_eps(records, reference))]
    label = eps_label(reference, records)
    note = _note(len(records), len(records) > ranked, bool(bands))
    numbers = figure.digest(title, norm, ticks, reference, lines, points, *bands)
    below = figure.legend_lines(min(MAX_NAMED, len(records)), note)
    with figure.panels(2, title, below=below) as (drawing, (curves, pareto)):
        drawn = figure.draw_curves(
            curves, lines, f"eps ({norm}); dotted: {label}, by which models are ranked", ticks, reference
        )
        figure.draw_proved(curves, bands)
        figure.draw_front(pareto, points, f"accuracy at eps = {label} (%)")
        curves.set_title("accuracy against eps" + (", 95 % intervals" if len(drawn) <= figure.MAX_BANDS else ""))
        pareto.set_title("robust against clean accuracy, with the Pareto front")
        figure.legend(drawing, drawn, [line.title for line in lines[:MAX_NAMED]], note)
        return figure.render(drawing, kind, numbers)


def _note(count: int, unranked: bool, proved: bool) -> str:
    """What the figure says of models without a name, of those without a rank, and of what is proved."""
    said = [f"{MAX_NAMED} of {count} models are named; the rest grey"] if count > MAX_NAMED else []
    return "; ".join(
        [
            *said,
            *(["hollow: not ranked"] if unranked else []),
            *(["hatched: from proved to attacked"] if proved else []),
        ]
    )


def _curve(record: Record) -> tuple[list[float], list[float], list[float], list[float]]:
    """eps from 0 on, accuracies, and their intervals."""
    curve = [(point.eps, point.accuracy, point.ci_low, point.ci_high) for point in record.curve]
    if record.at(0.0) is None:
        curve.insert(0, (0.0, record.clean, *wilson(round(record.clean * record.n), record.n)))
    eps, accuracy, low, high = (list(values) for values in zip(*curve, strict=True))
    return eps, accuracy, low, high
