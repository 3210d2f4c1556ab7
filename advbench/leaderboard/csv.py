"""The CSV of a leaderboard: one row for each record that is shown, and eps.

To add a column, add name, meaning and function to COLUMNS and run `make leaderboards`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable

from advbench.escape import csv_text
from advbench.leaderboard.protocol import protocol
from advbench.record import CurvePoint, Flag, Record

Cell = str | float | int | None
Column = tuple[str, str, Callable[[Record, CurvePoint], Cell]]
"""A column's name, its meaning, and its cell for a record and one point of its curve; None is an empty cell."""

COLUMNS: tuple[Column, ...] = (
    ("model", "what tables call the model", lambda record, point: record.model.title),
    (
        "method",
        "its training method, where it is known",
        lambda record, point: record.model.trained.method if record.model.trained else None,
    ),
    ("arch", "its architecture", lambda record, point: record.model.arch),
    ("params", "how many weights it has", lambda record, point: record.model.params),
    ("dataset", "as the command names it", lambda record, point: record.dataset.name),
    ("norm", "of the perturbations", lambda record, point: record.norm),
    ("attack", "the sets of attacks, or single attacks", lambda record, point: protocol(record).attacks),
    ("eps", "the size of the perturbation", lambda record, point: point.eps),
    ("eps_text", "eps as written", lambda record, point: point.eps_text),
    ("n", "how many images", lambda record, point: point.n),
    ("accuracy", "the share of them that stand at eps, 0 to 1", lambda record, point: point.accuracy),
    ("ci_low", "lower end of Wilson's 95 % interval", lambda record, point: point.ci_low),
    ("ci_high", "upper end of the interval", lambda record, point: point.ci_high),
    ("clean", "the accuracy without an attack, 0 to 1", lambda record, point: record.clean),
    ("certified", "the share that is proved to stand", lambda record, point: point.certified),
    (
        "train_eps",
        "the eps of the training attack",
        lambda record, point: record.model.trained.eps if record.model.trained else None,
    ),
    (
        "train_seed",
        "the seed of the training",
        lambda record, point: record.model.trained.seed if record.model.trained else None,
    ),
    (
        "train_passes",
        "forward and backward passes of the training for each image that it was shown",
        lambda record, point: record.model.trained.passes_an_image if record.model.trained else None,
    ),
    ("seed", "the seed of the attacks", lambda record, point: record.seed),
    (
        "passes",
        "forward and backward passes of the evaluation for each image",
        lambda record, point: record.passes_an_image,
    ),
    ("protocol", "rows with the same one are ranked together", lambda record, point: protocol(record).key),
    (
        "flags",
        "name:severity, with @eps where it was raised, joined by semicolons",
        lambda record, point: ";".join(map(_flag, record.flags)),
    ),
    ("weights_sha256", "the hash of the weights", lambda record, point: record.model.weights_sha256),
    ("record", "the record's id", lambda record, point: record.id),
    ("version", "of advbench", lambda record, point: record.environment.advbench),
    ("date", "of the measurement, ISO 8601, UTC", lambda record, point: record.environment.date),
)


def to_csv(records: Iterable[Record]) -> str:
    """The CSV of `records`, sorted by model, record and eps. Accuracies are fractions."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(name for name, _, _ in COLUMNS)
    for cells in rows(records):
        writer.writerow([csv_text(cell) if isinstance(cell, str) else cell for cell in cells])
    return stream.getvalue()


def rows(records: Iterable[Record]) -> list[list[Cell]]:
    """The cells under COLUMNS, a row for each record and eps, sorted by model, record and eps."""
    ordered = sorted(records, key=lambda record: (record.model.title, record.id))
    return [[cell(record, point) for _, _, cell in COLUMNS] for record in ordered for point in record.curve]


def _flag(flag: Flag) -> str:
    return f"{flag.name}:{flag.severity}" + ("" if flag.eps is None else f"@{flag.eps:g}")
