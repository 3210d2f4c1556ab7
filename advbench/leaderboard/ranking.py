"""Which records are ranked, where and in which order; which are below the line; and which are not shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from advbench.eps import parse_eps
from advbench.leaderboard.protocol import FEWEST_IMAGES, Protocol, hand_picked, protocol, size_of_split, usual_eps
from advbench.record import Notice, Record, measured_eps, superseded


@dataclass(frozen=True)
class Table:
    """The ranking of one protocol, best first, and its records that are not ranked, each with the reason.

    `needed`: the fewest images that are ranked.
    """

    protocol: Protocol
    needed: int
    ranked: tuple[Record, ...]
    below: tuple[tuple[Record, str], ...]

    @property
    def records(self) -> list[Record]:
        """All of them, the ranked first."""
        return [*self.ranked, *(record for record, _ in self.below)]

    @property
    def enough(self) -> bool:
        """Whether its images are enough, and not hand-picked."""
        return self.protocol.n >= self.needed and not hand_picked(self.records[0])


@dataclass(frozen=True)
class Board:
    """All that one dataset and norm show: a table for each protocol, rankings first, the strongest before the others.

    `repeated`: records left out because a newer one measured the same model by the same protocol. `superseded`: records
    left out because another one replaces them. `retired`: records left out by a notice, with its reason.
    """

    dataset: str
    norm: str
    reference: float
    tables: tuple[Table, ...]
    repeated: tuple[Record, ...]
    superseded: tuple[Record, ...]
    retired: tuple[tuple[Record, str], ...]

    @property
    def records(self) -> list[Record]:
        """All that are shown."""
        return [record for table in self.tables for record in table.records]


def board(records: Iterable[Record], notices: Mapping[str, Notice]) -> Board:
    """The board of `records`, at least one, of one dataset and norm; `notices` rename and retire some of them."""
    given = [named(record, notices.get(record.id)) for record in sorted(records, key=lambda record: record.id)]
    retired = {key: notice.retired for key, notice in notices.items() if notice.retired is not None}
    kept = [record for record in given if record.id not in retired]
    replaced = superseded(kept)
    current = [record for record in kept if record.id not in replaced]
    reference = reference_eps(current or given)
    shown = {record.id: record for record in newest(current, reference)}
    groups: dict[str, list[Record]] = {}
    for record in shown.values():
        groups.setdefault(protocol(record).key, []).append(record)
    splits: dict[str, list[Record]] = {}
    for record in shown.values():
        splits.setdefault(record.dataset.split, []).append(record)
    needed = {split: fewest_images(measured) for split, measured in splits.items()}
    tables = [table(group, reference, needed[group[0].dataset.split]) for group in groups.values()]
    return Board(
        given[0].dataset.name,
        given[0].norm,
        reference,
        tuple(sorted(tables, key=lambda table: (not table.ranked, table.protocol.order(table.enough)))),
        tuple(record for record in current if record.id not in shown),
        tuple(record for record in kept if record.id in replaced),
        tuple((record, retired[record.id]) for record in given if record.id in retired),
    )


def reference_eps(records: Sequence[Record]) -> float:
    """The eps to rank by, for `records` of one dataset and norm.

    It is the usual eps of the dataset if any record has it. Otherwise it is the eps > 0 that most records have, the
    largest of these if there are several, or 0 where all that was measured is the clean accuracy.
    """
    usual = usual_eps(records[0].dataset.name, records[0].norm)
    if usual is not None:
        value = parse_eps(usual, records[0].norm).value
        if any(record.at(value) for record in records):
            return value
    counts = measured_eps(records)
    return max(counts, key=lambda eps: (counts[eps], eps), default=0.0)


def newest(records: Sequence[Record], reference: float) -> list[Record]:
    """`records` without those that a newer one repeats: of the same model, by the same protocol.

    Newer is of a later version of the engine, or else with certificates, or else of a later date. A newer one that was
    not measured at `reference` takes the place only of one that was not either, and never that of one which others'
    adversarial images brought below it there: these still fool the model.
    """
    found: dict[tuple[object, ...], Record] = {}
    for record in sorted(records, key=lambda record: (record.at(reference) is not None, *age(record))):
        key = record.model.identity, protocol(record).key
        if key not in found or not _lowered(found[key], record, reference):
            found[key] = record
    return [record for record in records if found[record.model.identity, protocol(record).key] is record]


def _lowered(record: Record, newer: Record, eps: float) -> bool:
    """Whether files that `newer` was not given made `record` the lower one at `eps`."""
    felled = {one.sha256 for one in record.external if one.felled} - {one.sha256 for one in newer.external}
    was, now = record.at(eps), newer.at(eps)
    return bool(felled) and was is not None and now is not None and was.robust < now.robust


def fewest_images(records: Iterable[Record]) -> int:
    """The fewest images that are ranked, of one split: FEWEST_IMAGES, or all of the split.

    How many a dataset from outside has is not known: the most that one of `records` was measured on counts as all.
    """
    sizes = [size_of_split(record) or (0 if hand_picked(record) else record.n) for record in records]
    return min(FEWEST_IMAGES, max(sizes, default=0)) or FEWEST_IMAGES


def table(records: Sequence[Record], reference: float, needed: int) -> Table:
    """The table of the records of one protocol. Ranked or not, they are sorted by accuracy at `reference`, best first.

    Those that were not measured there come last, by clean accuracy. Ties are sorted by id. `needed`: the fewest images
    that are ranked.
    """

    def key(record: Record) -> tuple[bool, float, str]:
        point = record.at(reference)
        return point is None, -(point.accuracy if point else record.clean), record.id

    ordered = [(record, reasons(record, reference, needed)) for record in sorted(records, key=key)]
    return Table(
        protocol(records[0]),
        needed,
        tuple(record for record, why in ordered if not why),
        tuple((record, why) for record, why in ordered if why),
    )


def reasons(record: Record, reference: float, needed: int) -> str:
    """Why `record` is not ranked; empty if it is."""
    found = []
    if hand_picked(record):
        found.append("hand-picked images")
    elif record.n < needed:
        found.append(f"fewer than {needed:,} images")
    if record.at(reference) is None:
        found.append("not measured at the ranked eps")
    found += [f"{flag.name} is {flag.severity}" for flag in record.doubts(reference)]
    return ", ".join(dict.fromkeys(found))


def named(record: Record, notice: Notice | None) -> Record:
    """`record`, its model called as the notice says."""
    if notice is None or notice.name is None:
        return record
    return record.model_copy(update={"model": record.model.model_copy(update={"name": notice.name})})


def age(record: Record) -> tuple[tuple[int, ...], bool, datetime, str]:
    """A key that sorts by the engine's version, whether images were certified, the date and the id."""
    date = datetime.fromisoformat(record.environment.date)
    version = tuple(int(number) for number in re.findall(r"\d+", record.engine.version))
    return version, record.is_certified, date if date.tzinfo else date.replace(tzinfo=UTC), record.id
