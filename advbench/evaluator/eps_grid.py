"""From attacks at single eps to each sample's place on the grid of eps: the exact way and the fast one.

A strike is one attack on some samples, each at a grid point of its own; it tells which fell, and at what distance.
`exact`: every attack strikes at every grid point the samples that still stand. `fast` supposes that what an attack
cannot do at one eps it cannot do at a smaller one: the first attack bisects the grid, and each later one refines down:
it strikes just below the point where a sample is known to fall, and goes down for as long as it succeeds. So a sample
meets about one full set of attacks, not one a grid point. Few strikes take as long as many, up to the number of slots:
where few samples are left, the points further down are struck along with the next one, and count only where that fell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from advbench.record import Fates

Ints = NDArray[np.int64]
Strike = Callable[[int, Ints, Ints], tuple[NDArray[np.bool_], NDArray[np.float64]]]
"""(attack, samples (m,), grid points (m,)) -> fell (m,), and the size of the perturbation where it fell (m,)."""


class EpsGrid:
    """Where each sample stands: `fell` (n,), the first grid point known to fell it (len(eps): none), and `by`."""

    def __init__(self, eps: Sequence[float], correct: NDArray[np.bool_]) -> None:
        self.eps = np.asarray(eps, dtype=np.float64)
        self.first = int(np.searchsorted(self.eps, 0, side="right"))  # the first grid point above 0
        self.end = len(eps)
        self.fell = np.where(correct, self.end, 0).astype(np.int64)
        self.by = np.full(len(correct), -1, dtype=np.int64)

    def open(self) -> Ints:
        """Samples that an attack at some grid point could still bring down."""
        return np.flatnonzero(self.fell > self.first)

    def fates(self) -> Fates:
        """Where every sample ended, as a record keeps it."""
        return Fates(np.where(self.fell == self.end, -1, self.fell).astype(np.int16), self.by.astype(np.int16))

    def take(self, strike: Strike, attack: int, samples: Ints, points: Ints) -> NDArray[np.bool_]:
        """Let `attack` strike; which samples fell (m,). Each is put at its point, or lower where the size allows."""
        fell, reached = self.outcome(strike, attack, samples, points)
        self.fell[samples[fell]] = reached[fell]
        self.by[samples[fell]] = attack
        return fell

    def outcome(self, strike: Strike, attack: int, samples: Ints, points: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Which samples fell (m,), and the lowest point that is reached by it."""
        fell, size = strike(attack, samples, points)
        # A size within a part in a million of a grid point counts for it only by the ball's own test.
        reached = np.maximum(np.searchsorted(self.eps * (1 - 1e-6), size), self.first)
        return fell, np.minimum(points, reached)


def exact(grid: EpsGrid, strike: Strike, attacks: int) -> None:
    """Every attack at every grid point, on the samples that still stand."""
    for point in range(grid.first, grid.end):
        for attack in range(attacks):
            samples = np.flatnonzero(grid.fell > point)
            if len(samples):
                grid.take(strike, attack, samples, np.full(len(samples), point))


def fast(
    grid: EpsGrid, strike: Strike, attacks: int, parallel_strikes: Callable[[int], int] = lambda attack: 1
) -> None:
    """Bisect with the first attack, then refine down with each later one.

    `parallel_strikes(attack)` strikes of one take no longer than a single one.
    """
    stands = np.full(len(grid.fell), grid.first - 1)  # the highest point the first attack could not take
    while len(samples := np.flatnonzero(stands < grid.fell - 1)):
        middle = (stands[samples] + grid.fell[samples]) // 2
        fell = grid.take(strike, 0, samples, middle)
        stands[samples[~fell]] = middle[~fell]
    for attack in range(1, attacks):
        refine_down(grid, strike, attack, parallel_strikes(attack))


def refine_down(
    grid: EpsGrid, strike: Strike, attack: int, parallel_strikes: int = 1, samples: Ints | None = None
) -> None:
    """Strike just below the point where each of `samples`, by default all that are open, is known to fall, and go down
    for as long as it succeeds; at several points at once where so many strikes are not more than `parallel_strikes`."""
    samples = grid.open() if samples is None else samples
    while len(samples):
        points = grid.fell[samples, None] - np.arange(1, max(1, parallel_strikes // len(samples)) + 1)
        struck = points >= grid.first
        fell, reached = np.zeros_like(struck), np.zeros_like(points)
        fell[struck], reached[struck] = grid.outcome(strike, attack, samples[np.nonzero(struck)[0]], points[struck])
        going = np.ones(len(samples), dtype=bool)
        for point, down, to in zip(points.T, fell.T, reached.T, strict=True):
            due = going & (point == grid.fell[samples] - 1)  # others were passed by the size found further up
            took = due & down
            grid.fell[samples[took]] = to[took]
            grid.by[samples[took]] = attack
            going &= took | ~due
        samples = samples[going & (grid.fell[samples] > grid.first)]
