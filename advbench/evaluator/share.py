"""Evaluation by the processes of one torchrun: each attacks its share of the samples, then all know the outcome.

A verdict depends on its sample and the slots alone, so that what is put together is what one process would have found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from advbench import ranks
from advbench.errors import Interrupted, UserError
from advbench.record import Fates

if TYPE_CHECKING:
    from advbench.evaluator.bench import Bench

T = TypeVar("T")


def mine(n: int) -> NDArray[np.bool_]:
    """(n,) the samples of this process."""
    return np.arange(n) % ranks.world() == ranks.rank()


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


def together(bench: Bench, fates: Fates) -> Fates:
    """The fates of all samples; `bench` and its journal come to hold what all processes counted, found and noted."""
    if ranks.world() == 1:
        return fates
    journal = bench.journal
    counts = journal.forwards, journal.backwards, bench.unverified, bench.nonfinite
    told = ranks.gather_objects(
        (fates, counts, journal.seconds, journal.halvings, list(bench.eager), bench.points, bench.oracle.slots)
    )
    every, counted, seconds, halvings, eager, points, slots = zip(*told, strict=True)
    journal.forwards, journal.backwards, bench.unverified, bench.nonfinite = (
        sum(c) for c in zip(*counted, strict=True)
    )
    journal.seconds = max(seconds)
    journal.halvings = [halving for one in halvings for halving in one]
    bench.eager = {why: None for one in eager for why in one}
    bench.points = {row: point for one in points for row, point in one.items()}
    bench.oracle.slots = min(slots)
    owner = np.arange(len(fates)) % ranks.world()

    def merged(columns: list[NDArray[Any]]) -> NDArray[Any]:
        return np.stack(columns)[owner, np.arange(len(fates))]

    return Fates(
        merged([one.fell for one in every]),
        merged([one.by for one in every]),
        None if fates.norm is None else merged([one.norm for one in every]),
    )
