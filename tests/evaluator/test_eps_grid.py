"""The fates of samples on the grid, from strikes whose outcome is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.evaluator import eps_grid

GRID = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


class Strikes:
    """Attacks that fell a sample at every eps from its radius on; `radii` has one row for each attack."""

    def __init__(self, radii: np.ndarray, size: float = 1.0) -> None:
        self.radii, self.size, self.made = radii, size, 0

    def __call__(self, attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.made += len(samples)
        eps = np.asarray(GRID)[points]
        fell = self.radii[attack][samples] <= eps
        found = np.where(fell, self.size * eps + (1 - self.size) * self.radii[attack][samples], np.inf)
        return fell, found


radii = st.lists(st.lists(st.floats(0.01, 0.7), min_size=4, max_size=4), min_size=1, max_size=3)


@given(radii, st.sampled_from([0.0, 1.0]), st.lists(st.booleans(), min_size=4, max_size=4))
def test_both_walks_find_the_smallest_radius(rows: list[list[float]], size: float, right: list[bool]) -> None:
    table, correct = np.array(rows), np.array(right)
    expected = np.where(correct, np.searchsorted(GRID, table.min(0)), 0)
    for curve in (eps_grid.exact, eps_grid.fast):
        grid = eps_grid.EpsGrid(GRID, correct)
        curve(grid, Strikes(table, size), len(table))
        assert grid.fell.tolist() == expected.tolist(), curve.__name__
        assert ((grid.by >= 0) == (correct & (expected < len(GRID)))).all()


def test_fast_makes_fewer_strikes_than_exact() -> None:
    table = np.stack([np.linspace(0.05, 0.6, 60), np.linspace(0.05, 0.6, 60) - 0.01, np.linspace(0.05, 0.6, 60)])
    made = {}
    for curve in (eps_grid.exact, eps_grid.fast):
        strikes = Strikes(table)
        curve(eps_grid.EpsGrid(GRID, np.ones(60, dtype=bool)), strikes, 3)
        made[curve.__name__] = strikes.made
    assert made["fast"] < 0.6 * made["exact"]


def test_samples_that_are_wrong_without_an_attack_are_never_struck() -> None:
    grid = eps_grid.EpsGrid(GRID, np.array([False, True]))

    def strike(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert samples.tolist() == [1]
        return np.array([False]), np.array([np.inf])

    eps_grid.exact(grid, strike, 1)
    assert grid.fell.tolist() == [0, len(GRID)]


@pytest.mark.parametrize("curve", [eps_grid.exact, eps_grid.fast])
def test_a_grid_of_zero_alone_needs_no_attack(curve: object) -> None:
    grid = eps_grid.EpsGrid([0.0], np.array([True, False]))
    strikes = Strikes(np.zeros((1, 2)))
    curve(grid, strikes, 1)  # type: ignore[operator]
    assert (grid.fell.tolist(), strikes.made) == ([1, 0], 0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([0.0, 0.7]))
def test_parallel_strikes_change_no_fate(seed: int, room: int, carried: float) -> None:
    """Strikes at several points at once give the fates of single strikes, for any outcomes of the strikes."""
    draw = np.random.default_rng(seed)
    luck, reach = draw.random((2, 9, len(GRID))) < 0.6, draw.random((2, 9, len(GRID)))

    def strike(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        eps = np.asarray(GRID)[points]
        return luck[attack, samples, points], eps * (1 - carried * reach[attack, samples, points])

    grids, made = [], []
    for parallel in (1, room):
        grid, calls = eps_grid.EpsGrid(GRID, np.ones(9, dtype=bool)), 0

        def counted(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal calls
            calls += 1
            return strike(attack, samples, points)

        eps_grid.fast(grid, counted, 2, lambda attack, parallel=parallel: parallel)  # type: ignore[misc]
        grids.append((grid.fell.tolist(), grid.by.tolist()))
        made.append(calls)
    assert grids[0] == grids[1] and made[1] <= made[0]


def test_few_samples_are_struck_at_all_points_at_once() -> None:
    strikes, calls = Strikes(np.full((2, 3), 0.15) + np.array([[0.5], [0.0]])), []

    def counted(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(attack)
        return strikes(attack, samples, points)

    grid = eps_grid.EpsGrid(GRID, np.ones(3, dtype=bool))
    eps_grid.fast(grid, counted, 2, lambda attack: 64)
    assert grid.fell.tolist() == [2] * 3 and calls.count(1) == 1


@pytest.mark.parametrize("curve", [eps_grid.exact, eps_grid.fast])
def test_a_near_point_found_in_a_large_ball_counts_for_the_smaller_ones(curve: object) -> None:
    """The second of two attacks finds nothing below 0.4, but there a point 0.15 away: the sample falls at 0.2."""
    grid = eps_grid.EpsGrid(GRID, np.array([True]))

    def strike(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fell = (np.asarray(GRID)[points] >= 0.4) & (attack == 1)
        return fell, np.where(fell, 0.15, np.inf)

    curve(grid, strike, 2)  # type: ignore[operator]
    assert (grid.fell.tolist(), grid.by.tolist()) == ([2], [1])
