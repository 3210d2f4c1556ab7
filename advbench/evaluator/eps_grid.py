"""Finds where on the eps grid each sample falls, by attacks at single eps: exactly or fast.

A strike is one attack on some samples, each at its own grid point. It returns which samples fell, and at what distance.

`exact`: every attack strikes at every grid point, on the samples that still stand.

`fast`: assumes that an attack which fails at one eps also fails at every smaller one. The first attack bisects the
grid. Each later attack refines down: it strikes one point below where a sample is known to fall, and goes on downwards
for as long as it succeeds. A sample thus meets about one full set of attacks, instead of one set at each grid point.

Up to the number of slots, many strikes take as long as few. Where few samples are left, `fast` therefore strikes
several points below at once. A strike counts only if the sample also fell at all the points above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from advbench.record import Fates

Ints = NDArray[np.int64]
Strike = Callable[[int, Ints, Ints], tuple[NDArray[np.bool_], NDArray[np.float64]]]
"""(attack, samples (m,), grid points (m,)) -> fell (m,), and the size of the perturbation where a sample fell (m,)."""


class EpsGrid:
    """Where each sample falls. `fell` (n,): the lowest grid point at which it is known to fall, len(eps) if none.
    `by` (n,): the attack that felled it there, -1 if none."""

    def __init__(self, eps: Sequence[float], correct: NDArray[np.bool_]) -> None:
        self.eps = np.asarray(eps, dtype=np.float64)
        self.first = int(np.searchsorted(self.eps, 0, side="right"))  # the first grid point above 0
        self.end = len(eps)
        self.fell = np.where(correct, self.end, 0).astype(np.int64)
        self.by = np.full(len(correct), -1, dtype=np.int64)

    def open(self) -> Ints:
        """Samples (m,) that could still fall at a lower grid point above eps 0."""
        return np.flatnonzero(self.fell > self.first)

    def fates(self) -> Fates:
        """The fates of all samples, as a record keeps them."""
        return Fates(np.where(self.fell == self.end, -1, self.fell).astype(np.int16), self.by.astype(np.int16))

    def take(self, strike: Strike, attack: int, samples: Ints, points: Ints) -> NDArray[np.bool_]:
        """Let `attack` strike, and return which samples fell (m,).

        A sample that fell is moved to its grid point, or lower where the perturbation is small enough.
        """
        fell, reached = self.outcome(strike, attack, samples, points)
        self.fell[samples[fell]] = reached[fell]
        self.by[samples[fell]] = attack
        return fell

    def outcome(self, strike: Strike, attack: int, samples: Ints, points: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Which samples fell (m,), and the lowest grid point (m,) whose ball contains the perturbation."""
        fell, size = strike(attack, samples, points)
        # A size just below a grid point, by less than one part in a million, may lie outside of that ball by rounding:
        # only a strike there decides.
        reached = np.maximum(np.searchsorted(self.eps * (1 - 1e-6), size), self.first)
        return fell, np.minimum(points, reached)


def bisections(points: int) -> int:
    """How many strikes find the place of a sample among `points`."""
    return math.ceil(math.log2(points + 1))


def exact(grid: EpsGrid, strike: Strike, attacks: int, first: int = 0) -> None:
    """Every attack from `first` up to `attacks` at every grid point, on the samples that still stand."""
    for point in range(grid.first, grid.end):
        for attack in range(first, attacks):
            samples = np.flatnonzero(grid.fell > point)
            if len(samples):
                grid.take(strike, attack, samples, np.full(len(samples), point))


def fast(
    grid: EpsGrid, strike: Strike, attacks: int, parallel_strikes: Callable[[int], int] = lambda attack: 1
) -> None:
    """Bisect with the first attack, then refine down with each later one.

    `parallel_strikes(attack)` is the number of strikes of an attack that take no longer than one.
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
    """Strike one point below where each of `samples` is known to fall, and go on downwards for as long as it succeeds.

    `samples` (m,) are by default all open samples. Where they are few, each is struck at several points at once, by at
    most `parallel_strikes` strikes in all.
    """
    samples = grid.open() if samples is None else samples
    while len(samples):
        points = grid.fell[samples, None] - np.arange(1, max(1, parallel_strikes // len(samples)) + 1)
        struck = points >= grid.first
        fell, reached = np.zeros_like(struck), np.zeros_like(points)
        fell[struck], reached[struck] = grid.outcome(strike, attack, samples[np.nonzero(struck)[0]], points[struck])
        going = np.ones(len(samples), dtype=bool)
        for point, down, to in zip(points.T, fell.T, reached.T, strict=True):
            # Not due: the points that a small perturbation found further up has passed already.
            due = going & (point == grid.fell[samples] - 1)
            took = due & down
            grid.fell[samples[took]] = to[took]
            grid.by[samples[took]] = attack
            going &= took | ~due
        samples = samples[going & (grid.fell[samples] > grid.first)]
