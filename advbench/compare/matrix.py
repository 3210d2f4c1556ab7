"""A comparison of many models as one table: a row for each model, a column for each quantity."""

from __future__ import annotations

from collections.abc import Sequence

from advbench.compare.report import number
from advbench.compare.results import Comparison
from advbench.compare.sides import Side
from advbench.record import Record, labels

FEW = 3  # models that have a table each
STAR = "* p < 0.05 (Holm)"


def many(comparison: Comparison) -> bool:
    """Whether the models are too many for a table each."""
    return len(comparison.models) > FEW


def names(sides: Sequence[Side]) -> list[str]:
    """Short names of the sides, in their order, no two alike."""
    found = labels([_seedless(side.units[0].record) if len(side.units) > 1 else side.units[0].record for side in sides])
    counts = [len(side.units) for side in sides]
    return [f"{name} ({n} models)" if n > 1 else name for name, n in zip(found, counts, strict=True)]


def _seedless(record: Record) -> Record:
    """`record` in the place of those of all seeds, so that no name has one of them."""
    model = record.model
    trained = model.trained and model.trained.model_copy(update={"seed": None})
    return record.model_copy(update={"model": model.model_copy(update={"trained": trained})})


def matrix(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the numbers of the baseline, then the difference of each model to it, in percent and points.

    A star marks a difference whose p, adjusted by Holm, is below 0.05. median_norm is in units of the norm.
    """
    quantities = list(dict.fromkeys(row.quantity for row in comparison.rows))
    cells = {(row.model, row.quantity): row for row in comparison.rows}
    body = []
    for side, name in zip(comparison.sides, names(comparison.sides), strict=True):
        line = [name]
        for quantity in quantities:
            if side.label == comparison.baseline:
                line.append(f"{number(cells[comparison.models[0], quantity], 'baseline')} ")
            else:
                row = cells[side.label, quantity]
                line.append(f"{number(row, 'difference', '+')}{'*' if row.significant else ' '}")
        body.append(line)
    return ["model", *(quantity.removeprefix("acc@") for quantity in quantities)], body
