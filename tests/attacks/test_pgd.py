"""PGD and its variants, step by step against formulas in numpy, on given gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from advbench import rng
from advbench.attacks.pgd import PGD
from advbench.engine.attack import Answer, Problem
from advbench.engine.losses import likeliest
from advbench.registry import find
from advbench.threat import around

COUNT, EPS = 5, 0.1
STEPS = {"fgsm": 1.0, "rfgsm": 0.5, "fgsm-rs": 1.25, "n-fgsm": 1.0, "pgd": 0.25, "mi-fgsm": 0.1}  # as shares of eps


@pytest.fixture
def x() -> Tensor:
    """Grey images, whose balls [0, 1] does not cut."""
    return 0.5 + 0.2 * (torch.rand(COUNT, 2, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5)


@pytest.fixture
def gradients() -> Tensor:
    """Gradients of three steps, each 10 times as large as the one before."""
    sizes = torch.tensor([1.0, 10, 100]).view(3, 1, 1, 1, 1)
    return sizes * torch.randn(3, COUNT, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def problem(x: Tensor, norm: str = "linf", eps: float = EPS) -> Problem:
    y = torch.zeros(len(x), dtype=torch.int64)
    key = rng.keys(0, "pgd", torch.arange(len(x)))
    return Problem(around(norm, x, torch.full((len(x),), eps, dtype=torch.float64)), y, y - 1, key)


def queries(attack: Any, p: Problem, gradients: Tensor) -> list[Tensor]:
    """The first query, and the query after each gradient."""
    state = attack.start(p)
    asked, right = [state.query], torch.zeros(len(p.y), dtype=torch.bool)
    for g in gradients:
        state = attack.step(p, state, Answer(torch.zeros(len(p.y), 2), right, torch.zeros(len(p.y)), g))
        asked.append(state.query)
    return asked


@pytest.mark.parametrize("name", sorted(STEPS))
def test_steps_go_along_the_signs_as_far_as_the_paper_says(name: str, x: Tensor, gradients: Tensor) -> None:
    attack = find("attacks", name).create()
    assert attack.steps == (10 if name in ("pgd", "mi-fgsm") else 1)
    start, first = queries(attack, problem(x), gradients[:1])
    wanted = (start + STEPS[name] * EPS * gradients[0].sign()).clamp(x - EPS, x + EPS)
    assert torch.allclose(first, wanted, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "fourier-linf"])
def test_momentum_adds_gradients_of_l1_norm_1(norm: str, x: Tensor, gradients: Tensor) -> None:
    attack = find("attacks", "mi-fgsm").create(momentum=0.7).for_model(norm, 2)
    p = problem(x, norm)
    asked = queries(attack, p, gradients)
    wanted, velocity = x, torch.zeros_like(x)
    for g, query in zip(gradients, asked[1:], strict=True):
        velocity = 0.7 * velocity + g / g.abs().sum((1, 2, 3), keepdim=True)
        wanted = p.region.project(wanted + 0.1 * EPS * p.region.steepest(velocity))
        assert torch.allclose(query, wanted, atol=1e-6)


def test_the_registered_momentum_is_1(x: Tensor, gradients: Tensor) -> None:
    attack = find("attacks", "mi-fgsm").create()
    asked = queries(attack, problem(x), torch.stack([gradients[2], gradients[0]]))
    one, two = (g / g.abs().sum((1, 2, 3), keepdim=True) for g in (gradients[2], gradients[0]))
    assert torch.allclose(asked[2] - asked[1], 0.1 * EPS * (one + two).sign(), atol=1e-6)


def test_a_step_size_is_absolute(x: Tensor, gradients: Tensor) -> None:
    attack = PGD(name="pgd", steps=1, step_size=0.03, rel_step=7.0, random_start=False)
    for eps in (0.1, 0.2):
        assert torch.allclose(queries(attack, problem(x, eps=eps), gradients[:1])[1] - x, 0.03 * gradients[0].sign())


def test_starts_are_the_papers() -> None:
    x = torch.full((200, 1, 6, 6), 0.5)
    start = {
        init: (PGD(name="pgd", steps=1, init=init).start(problem(x)).query - x).double().numpy().ravel() / EPS
        for init in ("uniform", "gauss", "signs", "noise")
    }
    assert stats.kstest(start["uniform"], stats.uniform(-1, 2).cdf).pvalue > 0.001
    assert stats.kstest(start["noise"], stats.uniform(-2, 4).cdf).pvalue > 0.001
    assert stats.kstest(start["gauss"] * EPS / 0.001, "norm").pvalue > 0.001
    assert np.allclose(np.abs(start["signs"]), 0.5, atol=1e-5)
    assert stats.binomtest(int((start["signs"] > 0).sum()), len(start["signs"])).pvalue > 0.001
    attack = PGD(name="pgd", steps=1, random_start=False)
    assert torch.equal(attack.start(problem(x)).query, x)


def test_l1_steps_share_their_length_among_the_largest_elements_that_can_move(gradients: Tensor) -> None:
    x = torch.full((COUNT, 2, 6, 6), 0.5)
    x[:, 0, 0] = 0.0
    x[:, 0, 1] = 1.0
    attack = PGD(name="pgd", steps=1, rel_step=0.5, sparsity=0.9, random_start=False)
    _, moved = queries(attack, problem(x, "l1", 2.0), gradients[:1])
    g = gradients[0].numpy().reshape(COUNT, -1)
    d = (moved - x).numpy().reshape(COUNT, -1)
    at = x.numpy().reshape(COUNT, -1)
    for row in range(COUNT):
        stuck = ((at[row] == 0) & (g[row] < 0)) | ((at[row] == 1) & (g[row] > 0))
        largest = np.argsort(-np.abs(g[row]) * ~stuck)[:7]  # a tenth of 72
        wanted = np.zeros(72)
        wanted[largest] = np.sign(g[row][largest]) / 7
        assert stuck.any() and np.allclose(d[row], wanted, atol=1e-6)


def test_features_are_pulled_to_the_centres_of_the_3_likeliest_wrong_classes(x: Tensor) -> None:
    logits = torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(2))
    y = torch.arange(COUNT)
    attack = find("attacks", "feature-pgd").create()
    assert (attack.steps, attack.rel_step) == (40, 0.1)
    assert torch.equal(attack.target_classes(logits, y), likeliest(logits, y, 3))
    aimed = find("attacks", "feature-pgd").create(target=2).target_classes(logits, y)
    assert torch.equal(aimed, torch.where(y[:, None] == 2, likeliest(logits, y, 1), 2))
    p = problem(x)
    p.reference, features = torch.arange(15.0).view(COUNT, 3), torch.ones(COUNT, 3)
    assert np.allclose(attack.objective(p, features), -((p.reference.numpy() - 1) ** 2).sum(1))
