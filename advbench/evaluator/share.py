"""One evaluation by several processes: each attacks its share of the images, then what they found is put together.

A verdict depends on its image and the slots alone, so that this is what one process would have found. The processes
are those of one torchrun, or on a CPU those of `workers`.
"""

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
    from advbench.evaluator.bench import Bench

T = TypeVar("T")


def share(n: int, number: int, of: int) -> NDArray[np.int64]:
    """The images that process `number` of `of` attacks, of `n`."""
    return np.arange(number, n, of)


@dataclass(frozen=True)
class Told:
    """What a process knows at the end: what its bench counted, found and noted, and by `rows`, its share of all
    images, their fates (columns of Fates)."""

    rows: NDArray[np.int64]
    fell: NDArray[np.int16]
    by: NDArray[np.int16]
    norm: NDArray[np.float64] | None
    counts: tuple[int, int, int, int]  # forwards, backwards, unverified, nonfinite
    seconds: float
    halvings: list[tuple[int, int]]
    eager: list[str]
    points: dict[int, Tensor]
    slots: int


def told(bench: Bench, fates: Fates, rows: NDArray[np.int64]) -> Told:
    """What the process of `bench` tells the others: `fates` are those of all the bench's images, which either are
    all images, or `rows` of them."""
    journal, all_images = bench.journal, len(fates) > len(rows)
    here = rows if all_images else np.arange(len(rows))
    return Told(
        rows,
        fates.fell[here],
        fates.by[here],
        None if fates.norm is None else fates.norm[here],
        (journal.forwards, journal.backwards, bench.unverified, bench.nonfinite),
        journal.seconds,
        journal.halvings,
        list(bench.eager),
        {row if all_images else int(rows[row]): point for row, point in bench.points.items()},
        bench.oracle.slots,
    )


def together(bench: Bench, every: Sequence[Told]) -> Fates:
    """The fates of all images; `bench` and its journal come to hold what all processes counted, found and noted."""
    journal = bench.journal
    journal.own, journal.check = False, lambda: None
    journal.forwards, journal.backwards, bench.unverified, bench.nonfinite = (
        sum(counted) for counted in zip(*(one.counts for one in every), strict=True)
    )
    journal.seconds = max(one.seconds for one in every)
    journal.halvings = [halving for one in every for halving in one.halvings]
    bench.eager = {why: None for one in every for why in one.eager}
    bench.points = {row: point for one in every for row, point in one.points.items()}
    bench.oracle.slots = min(one.slots for one in every)
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
