"""Where samples end on the grid, with strikes whose outcome is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.evaluator import eps_grid

GRID = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


class Strikes:
    """Attacks that fell a sample at every eps from the sample's own radius on, one list of radii an attack."""

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
    for how in (eps_grid.exact, eps_grid.fast):
        way = eps_grid.EpsGrid(GRID, correct)
        how(way, Strikes(table, size), len(table))
        assert way.fell.tolist() == expected.tolist(), how.__name__
        assert ((way.by >= 0) == (correct & (expected < len(GRID)))).all()


def test_the_fast_walk_strikes_less() -> None:
    table = np.stack([np.linspace(0.05, 0.6, 60), np.linspace(0.05, 0.6, 60) - 0.01, np.linspace(0.05, 0.6, 60)])
    made = {}
    for how in (eps_grid.exact, eps_grid.fast):
        strikes = Strikes(table)
        how(eps_grid.EpsGrid(GRID, np.ones(60, dtype=bool)), strikes, 3)
        made[how.__name__] = strikes.made
    assert made["fast"] < 0.6 * made["exact"]


def test_who_is_wrong_without_an_attack_is_never_struck() -> None:
    way = eps_grid.EpsGrid(GRID, np.array([False, True]))

    def strike(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert samples.tolist() == [1]
        return np.array([False]), np.array([np.inf])

    eps_grid.exact(way, strike, 1)
    assert way.fell.tolist() == [0, len(GRID)]


@pytest.mark.parametrize("how", [eps_grid.exact, eps_grid.fast])
def test_a_grid_of_zero_alone_needs_no_attack(how: object) -> None:
    way = eps_grid.EpsGrid([0.0], np.array([True, False]))
    strikes = Strikes(np.zeros((1, 2)))
    how(way, strikes, 1)  # type: ignore[operator]
    assert (way.fell.tolist(), strikes.made) == ([1, 0], 0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([0.0, 0.7]))
def test_idle_slots_change_no_place(seed: int, room: int, carried: float) -> None:
    """Strikes at several points at once end as those one after the other, however an attack's luck may vary."""
    draw = np.random.default_rng(seed)
    luck, reach = draw.random((2, 9, len(GRID))) < 0.6, draw.random((2, 9, len(GRID)))

    def strike(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        eps = np.asarray(GRID)[points]
        return luck[attack, samples, points], eps * (1 - carried * reach[attack, samples, points])

    ways, made = [], []
    for rooms in (1, room):
        way, calls = eps_grid.EpsGrid(GRID, np.ones(9, dtype=bool)), 0

        def counted(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal calls
            calls += 1
            return strike(attack, samples, points)

        eps_grid.fast(way, counted, 2, lambda attack, rooms=rooms: rooms)  # type: ignore[misc]
        ways.append((way.fell.tolist(), way.by.tolist()))
        made.append(calls)
    assert ways[0] == ways[1] and made[1] <= made[0]


def test_few_samples_are_struck_at_all_points_at_once() -> None:
    strikes, calls = Strikes(np.full((2, 3), 0.15) + np.array([[0.5], [0.0]])), []

    def counted(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(attack)
        return strikes(attack, samples, points)

    way = eps_grid.EpsGrid(GRID, np.ones(3, dtype=bool))
    eps_grid.fast(way, counted, 2, lambda attack: 64)
    assert way.fell.tolist() == [2] * 3 and calls.count(1) == 1


@pytest.mark.parametrize("how", [eps_grid.exact, eps_grid.fast])
def test_a_near_point_found_in_a_large_ball_counts_for_the_smaller_ones(how: object) -> None:
    """The second of two attacks finds nothing below 0.4, and there a point 0.15 away: who falls at 0.2, falls by it."""
    way = eps_grid.EpsGrid(GRID, np.array([True]))

    def strike(attack: int, samples: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fell = (np.asarray(GRID)[points] >= 0.4) & (attack == 1)
        return fell, np.where(fell, 0.15, np.inf)

    how(way, strike, 2)  # type: ignore[operator]
    assert (way.fell.tolist(), way.by.tolist()) == ([2], [1])
