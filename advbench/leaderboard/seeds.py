"""Several trainings of one recipe, which differ by their seed alone: the mean and the spread of their accuracies."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from advbench.leaderboard.ranking import age
from advbench.record import Record


class Series(NamedTuple):
    """What the trainings have in common, and one record for each seed, by rising seed."""

    name: str
    records: tuple[Record, ...]

    @property
    def seeds(self) -> list[int]:
        return [
            trained.seed for record in self.records if (trained := record.model.trained) and trained.seed is not None
        ]

    def spread(self, eps: float | None) -> tuple[float, float] | None:
        """Mean and standard deviation of the accuracy at `eps` (None: of the clean one); None unless all have it."""
        if eps is None:
            values = [record.clean for record in self.records]
        else:
            values = [point.accuracy for record in self.records if (point := record.at(eps))]
        return (statistics.mean(values), statistics.stdev(values)) if len(values) == len(self.records) else None


def series(records: Sequence[Record]) -> list[Series]:
    """The recipes that several of `records` were trained by, in the order of their best record.

    Records from before the recipe was recorded without its seed are of one recipe if their run folders have the same
    name but for the seed at its end. The same file of several runs, such as that of their last epochs, is a series of
    its own. Of two trainings with the same seed, the one that was measured last counts.
    """
    groups: dict[object, dict[int, Record]] = {}
    for record in records:
        trained = record.model.trained
        if trained is None or trained.seed is None:
            continue
        stem = record.model.spec.removesuffix(f"-s{trained.seed}")
        by_name = (stem, trained.method, record.model.arch, trained.norm, trained.eps)
        if trained.series_sha256 or stem != record.model.spec:
            group = groups.setdefault((trained.series_sha256 or by_name, record.model.file), {})
            group[trained.seed] = max(group.get(trained.seed, record), record, key=age)
    return [
        Series(_common_name(group), tuple(group[seed] for seed in sorted(group)))
        for group in groups.values()
        if len(group) > 1
    ]


def _common_name(group: dict[int, Record]) -> str:
    """The name of all but for the seed at its end, or else every name."""
    stems = {record.model.title.removesuffix(f"-s{seed}"): None for seed, record in sorted(group.items())}
    return ", ".join(stems)
