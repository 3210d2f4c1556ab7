"""The CSV of a leaderboard: one row for each record that is shown, and eps.

To add a column, add a pair to COLUMNS and run `make leaderboards`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable

from advbench.escape import csv_text
from advbench.leaderboard.protocol import protocol
from advbench.record import CurvePoint, Flag, Record

Cell = str | float | int | None
Column = tuple[str, Callable[[Record, CurvePoint], Cell]]
"""A column's name, and its cell for a record and one point of the record's curve; None is an empty cell."""

COLUMNS: tuple[Column, ...] = (
    ("model", lambda record, point: record.model.title),
    ("method", lambda record, point: record.model.trained.method if record.model.trained else None),
    ("arch", lambda record, point: record.model.arch),
    ("params", lambda record, point: record.model.params),
    ("dataset", lambda record, point: record.dataset.name),
    ("norm", lambda record, point: record.norm),
    ("attack", lambda record, point: protocol(record).attacks),
    ("eps", lambda record, point: point.eps),
    ("eps_text", lambda record, point: point.eps_text),
    ("n", lambda record, point: point.n),
    ("accuracy", lambda record, point: point.accuracy),
    ("ci_low", lambda record, point: point.ci_low),
    ("ci_high", lambda record, point: point.ci_high),
    ("clean", lambda record, point: record.clean),
    ("certified", lambda record, point: point.certified),
    ("train_eps", lambda record, point: record.model.trained.eps if record.model.trained else None),
    ("train_seed", lambda record, point: record.model.trained.seed if record.model.trained else None),
    ("train_passes", lambda record, point: record.model.trained.passes_an_image if record.model.trained else None),
    ("seed", lambda record, point: record.seed),
    ("passes", lambda record, point: record.passes_an_image),
    ("protocol", lambda record, point: protocol(record).key),
    ("flags", lambda record, point: ";".join(map(_flag, record.flags))),
    ("weights_sha256", lambda record, point: record.model.weights_sha256),
    ("record", lambda record, point: record.id),
    ("version", lambda record, point: record.environment.advbench),
    ("date", lambda record, point: record.environment.date),
)


def to_csv(records: Iterable[Record]) -> str:
    """The CSV of `records`, sorted by model, record and eps. Accuracies are fractions."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(name for name, _ in COLUMNS)
    for cells in rows(records):
        writer.writerow([csv_text(cell) if isinstance(cell, str) else cell for cell in cells])
    return stream.getvalue()


def rows(records: Iterable[Record]) -> list[list[Cell]]:
    """The cells under COLUMNS, a row for each record and eps, sorted by model, record and eps."""
    ordered = sorted(records, key=lambda record: (record.model.title, record.id))
    return [[cell(record, point) for _, cell in COLUMNS] for record in ordered for point in record.curve]


def _flag(flag: Flag) -> str:
    return f"{flag.name}:{flag.severity}" + ("" if flag.eps is None else f"@{flag.eps:g}")
