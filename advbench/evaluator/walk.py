"""From attacks at single eps to each sample's place on the grid: the exact and the fast walk.

A strike is one attack on some samples, each at a grid point of its own; it says who fell, and at what
distance. `exact` makes every attack strike at every grid point those who still stand. `fast` supposes
that what an attack cannot do at one eps it cannot do at a smaller one: the first attack bisects the
grid, and each later one descends: it strikes just below the point where the sample is known to fall, going down
for as long as it succeeds. So a sample meets about one full set of attacks, not one a grid point. Few strikes take as
long as many, up to the number of slots: where few samples are left, the points further down are struck along with the
next one, and count only where it fell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from advbench.record import Fates

Ints = NDArray[np.int64]
Strike = Callable[[int, Ints, Ints], tuple[NDArray[np.bool_], NDArray[np.float64]]]
"""(attack, samples (m,), grid points (m,)) -> fell (m,), and its size for those who fell (m,)."""


class Walk:
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

    def strike(self, strike: Strike, attack: int, samples: Ints, points: Ints) -> NDArray[np.bool_]:
        """Let `attack` strike and take down what fell: at its point, or lower when the size found allows."""
        fell, reached = self.outcome(strike, attack, samples, points)
        self.fell[samples[fell]] = reached[fell]
        self.by[samples[fell]] = attack
        return fell

    def outcome(self, strike: Strike, attack: int, samples: Ints, points: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Who fell (m,), and the lowest point that is reached by it."""
        fell, size = strike(attack, samples, points)
        # A size within a part in a million of a grid point counts for it only by the ball's own test.
        reached = np.maximum(np.searchsorted(self.eps * (1 - 1e-6), size), self.first)
        return fell, np.minimum(points, reached)


def exact(walk: Walk, strike: Strike, attacks: int) -> None:
    """Every attack at every grid point, on those who still stand."""
    for point in range(walk.first, walk.end):
        for attack in range(attacks):
            samples = np.flatnonzero(walk.fell > point)
            if len(samples):
                walk.strike(strike, attack, samples, np.full(len(samples), point))


def fast(walk: Walk, strike: Strike, attacks: int, room: Callable[[int], int] = lambda attack: 1) -> None:
    """Bisect with the first attack, then strike with each later one just below what is known to fell.

    `room(attack)` strikes of one take no longer than a single one.
    """
    stands = np.full(len(walk.fell), walk.first - 1)  # the highest point the first attack could not take
    while len(samples := np.flatnonzero(stands < walk.fell - 1)):
        middle = (stands[samples] + walk.fell[samples]) // 2
        fell = walk.strike(strike, 0, samples, middle)
        stands[samples[~fell]] = middle[~fell]
    for attack in range(1, attacks):
        descend(walk, strike, attack, room(attack))


def descend(walk: Walk, strike: Strike, attack: int, room: int = 1, samples: Ints | None = None) -> None:
    """Strike just below where each of `samples`, by default all that are open, is known to fall, going down for as long
    as it succeeds; at several points at once where there is `room` for so many strikes."""
    samples = walk.open() if samples is None else samples
    while len(samples):
        points = walk.fell[samples, None] - np.arange(1, max(1, room // len(samples)) + 1)
        struck = points >= walk.first
        fell, reached = np.zeros_like(struck), np.zeros_like(points)
        fell[struck], reached[struck] = walk.outcome(strike, attack, samples[np.nonzero(struck)[0]], points[struck])
        going = np.ones(len(samples), dtype=bool)
        for point, down, to in zip(points.T, fell.T, reached.T, strict=True):
            due = going & (point == walk.fell[samples] - 1)  # others were passed by the size found further up
            took = due & down
            walk.fell[samples[took]] = to[took]
            walk.by[samples[took]] = attack
            going &= took | ~due
        samples = samples[going & (walk.fell[samples] > walk.first)]
