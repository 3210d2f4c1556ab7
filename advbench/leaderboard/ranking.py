"""Which record is above which: the eps they are compared at, and the order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from advbench.eps import parse_eps
from advbench.record import Record

REFERENCE = {
    ("cifar10", "linf"): "8/255",
    ("cifar100", "linf"): "8/255",
    ("mnist", "linf"): "0.3",
    ("fashion-mnist", "linf"): "0.1",
    ("digits", "linf"): "0.1",
    ("cifar10", "l2"): "0.5",
    ("cifar100", "l2"): "0.5",
}
"""The usual eps by dataset and norm."""


def reference_eps(records: Sequence[Record]) -> float:
    """The eps to rank by, for `records` of one dataset and norm.

    It is the usual eps of the dataset if any record has it. Otherwise it is the eps that most records have, the
    largest of these if there are several.
    """
    usual = REFERENCE.get((records[0].dataset.name, records[0].norm))
    if usual is not None:
        value = parse_eps(usual, records[0].norm).value
        if any(record.at(value) for record in records):
            return value
    counts = Counter(eps for record in records for eps in record.eps)
    highest_count = max(counts.values())
    return max(eps for eps, count in counts.items() if count == highest_count)


def rank(records: Iterable[Record], reference: float) -> tuple[list[Record], list[Record]]:
    """The records to rank, and those below the line: doubted ones, and those not measured at eps = `reference`.

    Both lists are sorted by accuracy at `reference`, best first; ties are sorted by id.
    """

    def key(record: Record) -> tuple[float, str]:
        point = record.at(reference)
        return (-point.accuracy if point else 1.0, record.id)

    ordered = sorted(records, key=key)
    below = [record for record in ordered if record.doubts(reference) or record.at(reference) is None]
    return [record for record in ordered if record not in below], below
