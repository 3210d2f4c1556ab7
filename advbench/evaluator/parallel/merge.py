"""What a process finds on its share of the images, and how the results of all are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from advbench import ranks
from advbench.errors import Interrupted, UserError
from advbench.record import Fates

if TYPE_CHECKING:
    from advbench.evaluator.runner import Runner

T = TypeVar("T")


def share(n: int, number: int, of: int) -> NDArray[np.int64]:
    """The images that process `number` of `of` attacks, of `n`."""
    return np.arange(number, n, of)


@dataclass(frozen=True)
class ShareResult:
    """What a process knows at the end: what its runner counted, found and noted, and by `rows`, its share of all
    images, their fates (columns of Fates)."""

    rows: NDArray[np.int64]
    fell: NDArray[np.int16]
    by: NDArray[np.int16]
    norm: NDArray[np.float64] | None
    counts: tuple[int, int, int, int]  # forwards, backwards, refused hits, hits by NaN or infinite logits
    seconds: float
    halvings: list[tuple[int, int]]
    eager: list[str]
    points: dict[int, Tensor]
    slots: int

    @classmethod
    def of(cls, runner: Runner, fates: Fates, rows: NDArray[np.int64]) -> ShareResult:
        """The result of the process of `runner`: `fates` are those of all the runner's images, which either are all
        images, or `rows` of them."""
        journal, all_images = runner.journal, len(fates) > len(rows)
        here = rows if all_images else np.arange(len(rows))
        return cls(
            rows,
            fates.fell[here],
            fates.by[here],
            None if fates.norm is None else fates.norm[here],
            (journal.forwards, journal.backwards, runner.unverified, runner.nonfinite),
            journal.seconds,
            journal.halvings,
            list(runner.eager),
            {row if all_images else int(rows[row]): point for row, point in runner.points.items()},
            runner.oracle.slots,
        )


def merge(runner: Runner, every: Sequence[ShareResult]) -> Fates:
    """The fates of all images; `runner` and its journal come to hold what all processes counted, found and noted."""
    journal = runner.journal
    journal.own, journal.check = False, lambda: None
    journal.forwards, journal.backwards, runner.unverified, runner.nonfinite = (
        sum(counted) for counted in zip(*(one.counts for one in every), strict=True)
    )
    journal.seconds = max(one.seconds for one in every)
    journal.halvings = [halving for one in every for halving in one.halvings]
    runner.eager = {why: None for one in every for why in one.eager}
    runner.points = {row: point for one in every for row, point in one.points.items()}
    runner.oracle.slots = min(one.slots for one in every)
    place = np.argsort(np.concatenate([one.rows for one in every]))
    norms = [one.norm for one in every if one.norm is not None]
    return Fates(
        np.concatenate([one.fell for one in every])[place],
        np.concatenate([one.by for one in every])[place],
        np.concatenate(norms)[place] if norms else None,
    )


def agreed(work: Callable[[], T]) -> T:
    """What `work` returns; UserError and Interrupted, raised on any process, are raised on all: none waits in vain."""
    value: T | None = None
    error: UserError | Interrupted | None = None
    try:
        value = work()
    except (UserError, Interrupted) as raised:
        error = raised
    for one in ranks.gather_objects(error):
        if one is not None:
            raise one
    return value  # type: ignore[return-value]
