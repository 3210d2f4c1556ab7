"""The result of one process on its share of the images, and the merging of all results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from advbench import ranks
from advbench.errors import Interrupted, UserError
from advbench.evaluator.journal import Cost
from advbench.record import Fates

if TYPE_CHECKING:
    from advbench.evaluator.runner import Runner

T = TypeVar("T")


def share(n: int, number: int, of: int) -> NDArray[np.int64]:
    """The rows, out of `n`, that process `number` of `of` attacks."""
    return np.arange(number, n, of)


@dataclass(frozen=True)
class ShareResult:
    """The result of one process: the fates of its share and all that its runner counted.

    `rows` (m,) is its share of all images; `fell`, `by` and `norm` (m,) are the columns of their Fates.
    """

    rows: NDArray[np.int64]
    fell: NDArray[np.int16]
    by: NDArray[np.int16]
    norm: NDArray[np.float64] | None
    counts: tuple[int, int]  # refused hits, hits by NaN or infinite logits
    skipped: tuple[int, int]  # as in Runner
    refused: NDArray[np.float64]  # (m,), as in Runner
    cost: Cost
    halvings: list[tuple[int, int]]
    eager: list[str]
    points: dict[int, Tensor]
    attempts: dict[int, tuple[float, Tensor]]
    slots: int
    journal: dict[str, Any] | None  # its state, where the process ends but the attacks may go on

    @classmethod
    def of(cls, runner: Runner, fates: Fates, rows: NDArray[np.int64], *, ends: bool = False) -> ShareResult:
        """The result of the process of `runner`, whose images have `fates`.

        They are either all images, or only the images `rows`. `ends`: the process ends, but the attacks may go on.
        """
        journal, all_images = runner.journal, len(fates) > len(rows)
        here = rows if all_images else np.arange(len(rows))
        return cls(
            rows,
            fates.fell[here],
            fates.by[here],
            None if fates.norm is None else fates.norm[here],
            (runner.unverified, runner.nonfinite),
            runner.skipped,
            runner.refused[here],
            journal.cost,
            journal.halvings,
            list(runner.eager),
            {row if all_images else int(rows[row]): point for row, point in runner.points.items()},
            {row if all_images else int(rows[row]): tried for row, tried in runner.attempts.items()},
            runner.oracle.slots,
            journal.state() if ends else None,
        )


def merge(runner: Runner, every: Sequence[ShareResult]) -> Fates:
    """The fates of all images. `runner` and its journal take over the sums and points of all processes."""
    journal = runner.journal
    journal.merge([one.cost for one in every], [halving for one in every for halving in one.halvings])
    journal.workers = {int(one.rows[0]): one.journal for one in every if one.journal is not None}
    runner.unverified, runner.nonfinite = map(sum, zip(*(one.counts for one in every), strict=True))
    strikes, passes = zip(*(one.skipped for one in every), strict=True)
    runner.skipped = sum(strikes), sum(passes)
    runner.eager = {why: None for one in every for why in one.eager}
    runner.points = {row: point for one in every for row, point in one.points.items()}
    runner.attempts = {row: tried for one in every for row, tried in one.attempts.items()}
    runner.oracle.slots = min(one.slots for one in every)
    place = np.argsort(np.concatenate([one.rows for one in every]))
    runner.refused = np.concatenate([one.refused for one in every])[place]
    norms = [one.norm for one in every if one.norm is not None]
    return Fates(
        np.concatenate([one.fell for one in every])[place],
        np.concatenate([one.by for one in every])[place],
        np.concatenate(norms)[place] if norms else None,
    )


def agreed(work: Callable[[], T]) -> T:
    """The result of `work`. A UserError or Interrupted in any process is raised in all, so that none waits forever."""
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
