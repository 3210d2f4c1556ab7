"""Square Attack's schedule, windows and forms against the paper's definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from advbench import rng
from advbench.attacks.square import Square, _forms, _sides, _tiles, _window
from advbench.engine.attack import Answer, Problem
from advbench.threat import around

CPU = torch.device("cpu")


def test_sides_follow_the_papers_halvings():
    sides = _sides(5000, 0.8, False, 32, 32, False, CPU).tolist()
    # p = 0.8 on 32 x 32 pixels, halved after 10, 50, 200, 500, 1000, 2000 and 4000 queries.
    for i, share in ((0, 0.8), (10, 0.8), (11, 0.4), (51, 0.2), (201, 0.1), (501, 0.05), (4999, 0.8 / 128)):
        assert sides[i] == max(round((share * 1024) ** 0.5), 1)
    rescaled = _sides(5000, 0.8, True, 32, 32, False, CPU).tolist()
    assert rescaled[6] == sides[12] and rescaled[2001] == sides[4002]
    assert all(side % 2 == 1 and side >= 3 for side in _sides(5000, 0.8, False, 33, 33, True, CPU).tolist())


def test_windows_lie_inside_and_reach_every_place():
    key = rng.keys(0, "test", torch.arange(3000))
    mask, top, left = _window(rng.draws(key, torch.arange(3000), 2), torch.full((3000,), 3), 5, 6)
    assert (mask.sum((1, 2, 3)) == 9).all()
    places = set(zip(top.tolist(), left.tolist(), strict=True))
    assert places == {(row, column) for row in range(3) for column in range(4)}


@pytest.mark.parametrize(("norm", "power"), [("l2", 2), ("l1", 1)])
def test_forms_are_two_opposite_bumps_of_norm_one(norm, power):
    forms = _forms(norm, 11, CPU)
    for side in (3, 5, 11):
        form = forms[side, :side, :side]
        assert (form.abs() ** power).sum() == pytest.approx(1, abs=1e-5)
        assert (form[: side // 2] > 0).all() and (form[side // 2 :] < 0).all()
        assert form[: side // 2].abs().max() > 1.5 * form[0, 0].abs()  # higher in the middle than at the corner
        assert forms[side, side:].abs().sum() == 0


@pytest.mark.parametrize("side", [28, 32, 8, 4])
def test_the_start_covers_the_image(side):
    x = torch.zeros(3, 2, side, side)
    tiles = _tiles(rng.keys(0, "test", torch.arange(3)), x, "l2")
    assert tiles.shape == x.shape
    border = (side - side // max(side // 5, 1) * max(side // 5, 1)) // 2
    inner = tiles[:, :, border : side - border or side, border : side - border or side]
    assert (inner != 0).float().mean() > 0.9


def test_what_is_left_of_the_norm_is_shared_among_the_channels():
    """Algorithm 3: a channel's window gets the mass of both windows and its share of eps^2 - ||delta||^2; then all is
    scaled to eps."""
    x, eps = torch.full((4, 2, 10, 10), 0.5), 0.5
    index = torch.arange(4)
    p = Problem(
        around("l2", x, torch.full((4,), eps, dtype=torch.float64)), 0 * index, index - 9, rng.keys(0, "", index)
    )
    delta = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    delta *= 0.6 * eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    attack = Square(name="square")
    state = replace(attack.start(p), i=torch.full((4,), 300), best=x + delta, best_value=torch.ones(4))
    query = attack.step(p, state, Answer(torch.zeros(4, 2), index < 0, torch.zeros(4))).query

    drawn, side = rng.draws(state.key, state.i, 7), torch.full((4,), 3)
    here, there = (_window(drawn[:, at : at + 2], side, 10, 10)[0] for at in (0, 2))
    both = torch.maximum(here, there)
    scale = ((query - x) * (1 - both)).flatten(1).norm(dim=1) / (delta * (1 - both)).flatten(1).norm(dim=1)
    reached = ((query - x) * here).flatten(2).norm(dim=2) / scale[:, None]
    wanted = (eps**2 * (1 - 0.6**2) / 2 + (delta * both).flatten(2).norm(dim=2) ** 2).sqrt()
    assert torch.allclose(reached, wanted, rtol=1e-3)
    assert torch.allclose((query - x).flatten(1).norm(dim=1), torch.tensor(eps), rtol=1e-4)
