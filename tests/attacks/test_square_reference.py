"""Square Attack against pyautoattack: with the same random numbers, every query is the package's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from advbench import rng
from advbench.attacks.square import Square
from advbench.engine.attack import Answer, Problem
from advbench.engine.losses import margin, wrong
from advbench.threat import around

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.05, "l2": 0.4, "l1": 1.0}
SIDE, CHANNELS, QUERIES = 10, 2, 250  # sides of 9 to 3 pixels
KEY = rng.keys(0, "square", torch.arange(1))


@pytest.fixture
def net() -> nn.Module:
    """Never wrong in these balls, so that the package makes all queries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIDE**2, 16), nn.Tanh(), nn.Linear(16, 3))
    made[3].bias.data = torch.tensor([9.0, 0.0, 0.0])  # type: ignore[operator]
    return made.requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return 0.5 + 0.1 * (torch.rand(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 0.5)


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_every_query_is_the_packages(norm: str, net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    y = net(x).argmax(1)
    p = Problem(around(norm, x, torch.tensor([EPS[norm]], dtype=torch.float64)), y, y - 1, KEY)
    attack = Square(name="square", n_queries=QUERIES)
    state, ours, kept = attack.start(p), [], 0
    while not bool(attack.done(state).all()):
        logits = net(state.query)
        value = margin(logits, y)
        kept += int(value > state.best_value)
        ours.append(state.query)
        state = attack.step(p, state, Answer(logits, wrong(logits, y), value))
    assert 5 < kept < QUERIES / 2

    theirs: list[Tensor] = []

    def noted(query: Tensor) -> Tensor:
        theirs.append(query.clone())
        return net(query)  # type: ignore[no-any-return]

    settings = {"n_queries": QUERIES, "eps": EPS[norm], "p_init": 0.8, "loss": "margin", "resc_schedule": False}
    square: Any = SquareAttack(noted, norm=NORMS[norm], **settings)
    square.init_hyperparam(x)
    flips = script(square, norm)
    monkeypatch.setattr(torch, "rand", lambda shape: torch.tensor([float(next(flips))]))
    square.attack_single_run(x, y)
    assert len(ours) == len(theirs) == QUERIES + 1
    assert torch.allclose(torch.cat(ours), torch.cat(theirs), atol=1e-5)


def script(square: Any, norm: str) -> Iterator[bool]:
    """Give the package our random numbers in the order in which it draws them; returns which forms to transpose."""
    key, queries = rng.fold(KEY, 3), torch.arange(QUERIES)
    windows = 2 if norm == "linf" else 4  # numbers for places
    count = windows + CHANNELS + (norm != "linf")
    drawn = rng.draws(key.expand(QUERIES), queries, count)
    places = iter(drawn[:, :windows].flatten().tolist())
    square.random_int = lambda low, high: int(rng.scaled(torch.tensor(next(places)), torch.tensor(high + 1)))

    if norm == "linf":
        choices = [rng.signs(KEY, (CHANNELS, 1, SIDE))]
        choices += [torch.where(row < 0, 1.0, -1.0) for row in drawn[:, 2:]]
        transposed: list[bool] = []
    else:
        tiles = 25
        choices = list(rng.signs(rng.fold(KEY, 2), (CHANNELS, tiles))[0].T)
        choices += [torch.where(row < 0, -1.0, 1.0) for row in drawn[:, 5:]]
        transposed = [bool(sign > 0) for sign in rng.signs(rng.fold(KEY, 1), (tiles,))[0]]
        transposed += (drawn[:, 4] < 0).tolist()
    signs = iter(choices)
    square.random_choice = lambda shape: next(signs).view(shape)
    return iter(transposed)
