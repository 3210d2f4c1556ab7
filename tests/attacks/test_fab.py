"""FAB's steps against algorithm 1 of its paper, on images whose steps [0, 1] does not clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench import rng
from advbench.attacks.fab import FABT
from advbench.engine.attack import Answer, Problem
from advbench.threat import around

COUNT, EPS = 8, 0.25
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
Floats = NDArray[np.float64]


def problem(norm: str, eps: float = EPS) -> Problem:
    x = 0.5 + 0.1 * (torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5)
    index = torch.arange(COUNT)
    region = around(norm, x, torch.full((COUNT,), eps, dtype=torch.float64))
    return Problem(region, index % 2, 1 - index % 2, rng.keys(0, "fab", index), index % 2)


def shortest(norm: str, w: Floats, rise: float) -> Floats:
    """The smallest d with <w, d> = rise."""
    if norm == "linf":
        return rise * np.sign(w) / np.abs(w).sum()
    if norm == "l2":
        return rise * w / (w**2).sum()
    d = np.zeros_like(w)
    top = np.abs(w).argmax()
    d[top] = rise / w[top]
    return d


def answer(value: Tensor, grad: Tensor | None, wrong: Tensor) -> Answer:
    return Answer(torch.zeros(COUNT, 2), wrong, value, grad)


@pytest.mark.parametrize("alpha_max", [0.1, 0.9])
@pytest.mark.parametrize("norm", sorted(ORDER))
def test_a_step_mixes_those_from_the_query_and_from_the_image(norm: str, alpha_max: float) -> None:
    p = problem(norm)
    draw = torch.Generator().manual_seed(1)
    w, f = torch.randn(COUNT, 1, 6, 6, generator=draw), 0.1 * torch.randn(COUNT, generator=draw)
    query = p.region.x + 0.01 * torch.randn(p.region.x.shape, generator=draw)
    attack = FABT(name="fab-t", alpha_max=alpha_max)
    right = torch.zeros(COUNT, dtype=torch.bool)
    stepped = attack.step(p, replace(attack.start(p), query=query), answer(f, w, right)).query
    shares = []
    for row in range(COUNT):
        x, z, v = (t[row].double().numpy().ravel() for t in (p.region.x, query, w))
        near = shortest(norm, v, -float(f[row]))
        far = shortest(norm, v, -float(f[row]) - v @ (x - z))
        one, other = (np.linalg.norm(d, ORDER[norm]) for d in (near, far))
        shares.append(one / (one + other))
        alpha = min(shares[-1], alpha_max)
        wanted = (1 - alpha) * (z + 1.05 * near) + alpha * (x + 1.05 * far)
        assert np.allclose(stepped[row].numpy().ravel(), wanted, atol=1e-5)
    assert max(shares) > 0.1 and min(shares) < 0.9


def test_only_adversarial_points_are_moved_back_to_the_image() -> None:
    p = problem("l2")
    query = p.region.x + 0.1
    attack = FABT(name="fab-t")
    wrong = torch.arange(COUNT) < 3
    back = attack.step(p, replace(attack.start(p), query=query), answer(torch.zeros(COUNT), None, wrong)).query
    assert torch.allclose(back - p.region.x, torch.where(wrong, 0.09, 0.1).view(-1, 1, 1, 1), atol=1e-6)


def test_each_step_queries_a_gradient_and_logits() -> None:
    attack, p = FABT(name="fab-t", steps=7), problem("l2")
    assert attack.turn == ("gradient", "logits")
    state, answers = attack.start(p), 0
    while not bool(attack.done(state).any()):
        state, answers = replace(state, i=state.i + 1), answers + 1
    assert answers == 14


@pytest.mark.parametrize(
    ("eps", "sizes"), [(EPS, dict.fromkeys(ORDER, EPS)), (np.inf, {"linf": 0.3, "l2": 1, "l1": 5})]
)
@pytest.mark.parametrize("norm", sorted(ORDER))
def test_the_first_start_is_the_image_and_the_others_lie_half_of_eps_away(
    norm: str, eps: float, sizes: dict[str, float]
) -> None:
    p = problem(norm, eps)
    away = FABT(name="fab-t", restarts=2).start(p).query - p.region.x
    assert torch.equal(away[::2], torch.zeros_like(away[::2]))
    assert torch.allclose(p.region.size(away)[1::2], torch.tensor(sizes[norm] / 2), rtol=1e-4)
