"""Auto-PGD's schedules and its result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from advbench import rng
from advbench.attacks.apgd import APGD
from advbench.engine.attack import Answer, Attack, Problem, State, solve
from advbench.threat import around


def queries(attack: Attack, norm: str) -> list[State]:
    """The states of the attack on a linear model until it is done, in balls that [0, 1] does not cut."""
    index = torch.arange(3)
    x = torch.full((3, 1, 8, 8), 0.5)
    w = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    p = Problem(around(norm, x, torch.full((3,), 0.25)), index, torch.full((3,), -1), rng.keys(0, "apgd", index))
    state, asked = attack.start(p), []
    while not attack.done(state).all():
        asked.append(state)
        value = (w * state.query).flatten(1).sum(1)
        state = attack.step(p, state, Answer(value[:, None], torch.zeros(3, dtype=torch.bool), value, w))
    return asked


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_point_after_every_step_is_queried(norm: str) -> None:
    assert len(queries(APGD(name="apgd", steps=10).for_model(norm, 10), norm)) == 11


# AutoAttack splits 100 steps into 30, 30 and 40, each preceded by a query of the ball's first point.
@pytest.mark.parametrize(("steps", "lengths"), [(100, (30, 30, 40)), (7, (3, 3, 1))])
def test_larger_balls_come_first(steps: int, lengths: tuple[int, int, int]) -> None:
    asked = queries(APGD(name="apgd", steps=steps, larger_eps=True).for_model("l1", 10), "l1")
    wanted = [factor for factor, length in zip((3, 2, 1), lengths, strict=True) for _ in range(length + 1)]
    sizes = torch.stack([(state.query - 0.5).abs().flatten(1).sum(1) / 0.25 for state in asked])
    assert torch.allclose(sizes, torch.tensor(wanted).float()[:, None].expand_as(sizes), atol=1e-4)


def test_larger_eps_has_its_own_version() -> None:
    assert APGD(name="apgd", steps=10, larger_eps=True).version == 2
    assert APGD(name="apgd", steps=10).version == 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_training_gets_the_best_point_not_the_last(norm: str) -> None:
    """The objective is largest between the image and the points of the first steps."""
    index = torch.arange(4)
    x = torch.full((4, 1, 8, 8), 0.5)
    target = x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    p = Problem(around(norm, x, torch.full((4,), 1.0)), index, torch.full((4,), -1), rng.keys(0, "apgd", index))
    asked: list[torch.Tensor] = []

    def objective(query: torch.Tensor) -> torch.Tensor:
        value = -(query - target).square().flatten(1).sum(1)
        asked.append(value.detach())
        return value

    z = solve(APGD(name="apgd", steps=12).for_model(norm, 10), objective, p)
    values = torch.stack(asked)
    assert torch.equal(objective(z).detach(), values.amax(0))


def test_steps_are_halved_by_the_papers_two_rules() -> None:
    """On given values: random walks, and long rises from far below that never reach the best value so far."""
    count, steps = 20, 100
    values = np.random.default_rng(0).normal(size=(count, steps + 1)).cumsum(1)
    values[5:, 23:] = -1000 + np.arange(steps - 22)
    values[5:, 60:] += np.linspace(0, 2000, count - 5)[:, None]
    index = torch.arange(count)
    p = Problem(
        around("linf", torch.full((count, 1, 2, 2), 0.5), torch.full((count,), 0.25)), index, index - count, index
    )
    attack = APGD(name="apgd", steps=steps)
    state, right = attack.start(p), torch.zeros(count, dtype=torch.bool)
    lengths = []
    for value in torch.from_numpy(values).float().T:
        state = attack.step(p, state, Answer(torch.zeros(count, 2), right, value, torch.ones(count, 1, 2, 2)))
        lengths.append(state.step / 0.5)  # as a share of 2 eps
    wanted, stuck = zip(*(halvings(row) for row in values), strict=True)
    assert any(stuck) and not all(stuck)
    assert np.array_equal(torch.stack(lengths, 1).numpy(), np.array(wanted))


def halvings(values: NDArray[np.float64]) -> tuple[list[float], bool]:
    """The step size after each of the 101 values, and whether the second rule alone halved it at some checkpoint."""
    length, lengths, alone = 1.0, [1.0], False
    window, checkpoint, rises = 22, 22, 0
    halved, best = True, values[0]
    for i in range(1, len(values)):
        rises += values[i] > values[i - 1]
        if i == checkpoint:
            few, stuck = rises <= 0.75 * window, not halved and values[: i + 1].max() == best
            alone |= stuck and not few
            halved, best, rises = few or stuck, values[: i + 1].max(), 0
            length /= 2 if halved else 1
            window = max(window - 3, 6)
            checkpoint += window
        lengths.append(length)
    return lengths, alone
