"""Square Attack's schedule, windows and forms against the paper's definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from advbench import rng
from advbench.attacks.square import Square, _forms, _sides, _tiles, _window
from advbench.data import load
from advbench.engine.attack import Answer, Problem
from advbench.errors import UserError
from advbench.evaluator import Settings, evaluate
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


def course(attack: Square, margins: list[float], clean: float = -2.0) -> int:
    """After how many answers an item ends whose best margin is margins[k] from query 100 * k on, of 1,000."""
    one = torch.zeros(1, dtype=torch.int64)
    region = around("linf", torch.full((1, 1, 8, 8), 0.5), torch.full((1,), 0.1, dtype=torch.float64))
    p = Problem(region, one, one - 1, rng.keys(0, "", one), reference=torch.tensor([[0.0, clean]]))
    state = attack.start(p)
    for query in range(2000):
        if attack.done(state):
            return query
        value = torch.tensor([margins[min(query // 100, len(margins) - 1)]])
        state = attack.step(p, state, Answer(torch.zeros(1, 2), one > 0, value))
    raise AssertionError("it never ends")


def test_an_item_is_given_up_that_is_too_far_from_failure():
    """Looked at after 100, 200, 400 and 800 of 1,000 queries, where 3.32, 2.32, 1.32 and 0.32 doublings are left."""
    attack = Square(name="square", n_queries=1000, early_stop=0.1)
    needed = [-2 * 0.1 * left for left in (3.3219, 2.3219, 1.3219, 0.3219)]
    assert course(attack, [-9, needed[0] - 1e-3]) == 101 and course(attack, [-9, needed[0] + 1e-3]) == 201
    assert course(attack, [-9, -0.5, needed[1] + 1e-3]) == 401
    assert course(attack, [-9, -0.5, -0.4, -0.4, needed[2] + 1e-3]) == 801
    near = [-9, -0.5, -0.4, -0.4, -0.2, -0.2, -0.2, -0.2, needed[3] + 1e-3]
    assert course(attack, near) == 1001 and course(attack, [-9, -0.5], clean=-9.0) == 801
    assert course(replace(attack, early_stop=0.0), [-9]) == 1001 == course(attack, [-9], clean=1.0)
    assert course(replace(attack, n_queries=5), [-9]) == 2  # fewer than ten are looked at after the first query


def test_the_margin_of_an_item_with_a_target_is_compared_with_the_clean_one_to_that_target():
    attack = Square(name="square", n_queries=1000, early_stop=0.1, target=2)
    one = torch.zeros(1, dtype=torch.int64)
    region = around("linf", torch.full((1, 1, 8, 8), 0.5), torch.full((1,), 0.1, dtype=torch.float64))
    for target, given_up in ((1, True), (2, False)):  # clean margins of -2 and -20, then -4
        p = Problem(region, one, one + target, rng.keys(0, "", one), reference=torch.tensor([[0.0, -2.0, -20.0]]))
        state = attack.start(p)
        for _ in range(101):
            state = attack.step(p, state, Answer(torch.zeros(1, 3), one > 0, torch.tensor([-4.0])))
        assert bool(attack.done(state)) == given_up


def test_early_stopping_saves_queries_and_fells_nothing_else():
    digits = load("digits", "test").subset(range(60))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        x, y = load("digits", "train").batch(slice(None))
        net[1].weight.copy_(torch.stack([x[y == k].mean(0).flatten() for k in range(10)]))
        net[1].bias.copy_(-(net[1].weight ** 2).sum(1) / 2)  # the nearest mean
    whole, early = (
        evaluate(net, digits, Settings(attack="square", attack_settings=how, eps=["0", "0.2"], slots=16, probes=False))
        for how in ({"n_queries": 1000}, {"n_queries": 1000, "early_stop": 0.05})
    )
    fell = [one.fates.fell == 1 for one in (whole, early)]
    assert fell[1].sum() > 10 and not (fell[1] & ~fell[0]).any() and not fell[0].all()
    assert early.record.forwards < 0.8 * whole.record.forwards
    assert "early_stop" not in whole.record.attack[0].settings and early.record.attack[0].settings["early_stop"] == 0.05
    assert whole.record.question != early.record.question


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"early_stop": -0.1}, "early_stop is -0.1, but must be 0 or a positive number"),
        ({"early_stop": 0.1, "loss": "ce"}, "early_stop compares margins, so it needs loss=cw, not ce"),
    ],
)
def test_early_stopping_that_makes_no_sense_is_refused(how, words):
    with pytest.raises(UserError, match=words):
        Square(name="square", **how)
