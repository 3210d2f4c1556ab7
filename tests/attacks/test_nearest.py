"""DDN, FMN, CW, DeepFool and sigma-zero, step by step against the formulas of their papers, on given answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advbench import rng
from advbench.attacks.cw import CW
from advbench.attacks.ddn import DDN
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fmn import FMN
from advbench.attacks.sigma_zero import SigmaZero
from advbench.engine.attack import Answer, Problem
from advbench.threat import around

COUNT = 6
WRONG = torch.tensor([True, False] * 3)


@pytest.fixture
def p() -> Problem:
    """On grey images, whose balls [0, 1] does not cut."""
    return problem("l2")


def problem(norm: str) -> Problem:
    x = 0.5 + 0.1 * (noise(0) / 4).clamp(-1, 1)
    index = torch.arange(COUNT)
    eps = torch.full((COUNT,), torch.inf, dtype=torch.float64)
    return Problem(around(norm, x, eps), index % 3, torch.full((COUNT,), -1), rng.keys(0, "nearest", index))


def noise(seed: int) -> Tensor:
    return torch.randn(COUNT, 1, 5, 5, generator=torch.Generator().manual_seed(seed))


def answer(gradient: Tensor, wrong: Tensor = WRONG, value: Tensor | None = None) -> Answer:
    return Answer(torch.zeros(COUNT, 3), wrong, torch.full((COUNT,), -0.1) if value is None else value, gradient)


def l2(d: Tensor) -> Tensor:
    return d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def test_ddn_turns_along_the_gradient_and_scales_to_its_norm(p: Problem) -> None:
    attack, g, delta = DDN(name="ddn", steps=200), noise(1), 0.01 * noise(2)
    state = attack.start(p)
    assert torch.equal(state.query, p.region.x) and (state.norm == 1).all()
    for i, alpha in ((0, 1.0), (50, 0.01 + 0.99 * (1 + np.cos(np.pi / 4)) / 2), (100, 0.505), (200, 0.01)):
        eps = torch.linspace(0.1, 0.6, COUNT, dtype=torch.float64)
        there = replace(state, i=torch.full((COUNT,), i), delta=delta, norm=eps)
        after = attack.step(p, there, answer(g))
        turned = delta + alpha * g / l2(g)
        norm = torch.where(WRONG, 0.95, 1.05) * eps
        wanted = p.region.x + norm.float().view(-1, 1, 1, 1) * turned / l2(turned)
        assert torch.allclose(after.norm, norm) and torch.allclose(after.query, wanted, atol=1e-6)
        assert torch.equal(after.delta, after.query - p.region.x)


def test_ddn_leaves_a_point_without_gradient_in_a_new_direction_each_time(p: Problem) -> None:
    attack = DDN(name="ddn", steps=20, init_norm=0.4)
    first = attack.step(p, attack.start(p), answer(0 * noise(0)))
    other = attack.step(p, replace(attack.start(p), i=torch.ones(COUNT, dtype=torch.int64)), answer(0 * noise(0)))
    size = torch.where(WRONG, 0.38, 0.42).view(-1, 1, 1, 1)
    assert torch.allclose(l2(first.delta), size) and torch.allclose(l2(other.delta), size)
    assert ((first.delta * other.delta).flatten(1).sum(1).abs() < 0.9 * 0.16).all()


def test_ddn_rounds_to_levels_where_it_is_asked_to(p: Problem) -> None:
    attack = DDN(name="ddn", steps=20, levels=16)
    query = attack.step(p, attack.start(p), answer(noise(1))).query
    assert torch.allclose(query * 15, (query * 15).round(), atol=1e-5)
    free = DDN(name="ddn", steps=20).step(p, attack.start(p), answer(noise(1))).query
    assert 0 < (query - free).abs().max() <= 0.5 / 15 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_shrinks_grows_and_estimates_its_ball(norm: str) -> None:
    p = problem(norm)
    attack, g = FMN(name="fmn", steps=100).for_model(norm, 3), noise(1)
    query = p.region.x + 0.01 * noise(2)
    order, dual = {"linf": (np.inf, 1), "l2": (2, 2), "l1": (1, np.inf)}[norm]
    here = (query - p.region.x).flatten(1).double().norm(order, dim=1)
    # Items 0, 2 and 4 are wrong. The earlier hit is farther (0, 3), nearer (1, 2), or missing (4, 5).
    nearest = torch.stack([2 * here[0], here[1] / 2, here[2] / 2, 2 * here[3], here[4], here[5]])
    nearest[4:] = torch.inf
    eps = torch.where(nearest.isinf(), torch.inf, 1.1 * here)
    value = -0.3 * torch.arange(1.0, COUNT + 1)
    estimate = here + value.abs() / g.flatten(1).norm(dual, dim=1)
    for i, alpha, gamma in ((0, 1.0, 0.05), (50, 0.505, 0.0255), (100, 0.01, 0.001)):
        there = replace(attack.start(p), query=query, i=torch.full((COUNT,), i), size=eps, nearest=nearest)
        after = attack.step(p, there, answer(g, value=value))
        known = torch.where(WRONG, torch.minimum(here, nearest), nearest)
        size = torch.where(WRONG, torch.minimum(eps * (1 - gamma), known), eps * (1 + gamma))
        size = torch.where(~WRONG & nearest.isinf(), estimate, size)
        assert torch.allclose(after.nearest, known) and torch.allclose(after.size, size, rtol=1e-5)
        wanted = around(norm, p.region.x, after.size).project(query + alpha * g / l2(g))
        assert torch.allclose(after.query, wanted, atol=1e-6)


def test_cw_is_adam_on_distance_and_margin(p: Problem) -> None:
    """Against torch.optim.Adam, with a margin <v, x'> - b that exceeds kappa on the way, where its gradient ends."""
    v, steps, c = noise(1), 60, 4.0
    x = p.region.x
    attack = CW(name="cw-l2", searches=1, iterations=steps, c_init=c, kappa=0.2, lr=0.02)
    b = (v * x).flatten(1).sum(1) + 0.3
    w = torch.atanh(2 * x - 1).requires_grad_()
    adam = torch.optim.Adam([w], lr=0.02)
    state = attack.start(p)
    reached = torch.zeros(COUNT, dtype=torch.bool)
    for _ in range(steps):
        image = (torch.tanh(w) + 1) / 2
        assert torch.allclose(state.query, image, atol=1e-4)
        value = (v * image).flatten(1).sum(1) - b
        reached |= value > 0.2
        loss = (image - x).square().sum() + c * (-value).clamp_min(-0.2).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        state = attack.step(p, state, answer(v, value > 0, value.detach()))
    assert reached.any()


def test_cw_searches_c_between_its_bounds(p: Problem) -> None:
    attack = CW(name="cw-l2", searches=6, iterations=3, c_init=0.001)
    state, found = attack.start(p), (False, False, True, False, True, False)
    cs = []
    for search in found:
        cs.append(state.c[0].item())
        assert torch.allclose(state.query, p.region.x, atol=1e-5)  # every search starts from x
        for i in range(3):
            state = attack.step(p, state, answer(noise(i), torch.full((COUNT,), search and i == 1)))
    assert cs == pytest.approx([0.001, 0.01, 0.1, 0.055, 0.0775, 0.06625])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_adds_up_the_steps_and_overshoots_their_sum(norm: str) -> None:
    p = problem(norm)
    attack: Any = DeepFool(name="deepfool").for_model(norm, 3)
    state, r = attack.start(p), torch.zeros_like(p.region.x)
    for seed in (1, 2):
        gradient = torch.stack([noise(10 * seed + k) for k in range(3)], 1)
        logits = 0.2 * torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(seed))
        state = attack.step(p, state, Answer(logits, torch.zeros(COUNT, dtype=torch.bool), logits[:, 0], gradient))
        for row in range(COUNT):
            y = int(p.y[row])
            others = [k for k in range(3) if k != y]
            differences = [gradient[row, k] - gradient[row, y] for k in others]
            gaps = [abs(float(logits[row, k] - logits[row, y])) for k in others]
            duals = [float(w.flatten().norm(1 if norm == "linf" else 2)) for w in differences]
            k = int(np.argmin(np.array(gaps) / duals))
            direction = differences[k].sign() if norm == "linf" else differences[k] / duals[k]
            r[row] += (gaps[k] + 1e-4) / duals[k] * direction
        assert torch.allclose(state.query, p.region.x + 1.02 * r, atol=1e-5)


def test_deepfool_ends_at_the_first_hit() -> None:
    p = problem("l2")
    attack: Any = DeepFool(name="deepfool", steps=50)
    gradient = torch.stack([noise(k) for k in range(3)], 1)
    state = attack.step(p, attack.start(p), Answer(torch.zeros(COUNT, 3), WRONG, torch.zeros(COUNT), gradient))
    assert torch.equal(attack.done(state), WRONG)


def test_sigma_zero_is_adam_on_a_smooth_count_and_the_margin() -> None:
    """Step by step against torch.optim.Adam and its cosine schedule, on a linear margin, with the threshold."""
    p, steps, sigma = problem("l0"), 40, 1e-3
    x, v = p.region.x, noise(1)
    b = (v * x).flatten(1).sum(1) + torch.linspace(0.1, 3.0, COUNT)
    attack = SigmaZero(name="sigma-zero", steps=steps)
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, 0.1)
    state, tau, seen = attack.start(p), torch.full((COUNT,), 0.3), set()
    for _ in range(steps):
        value = (v * (x + delta)).flatten(1).sum(1) - b
        wrong = value > 0
        seen |= set(wrong.tolist())
        loss = (-value).clamp_min(0) + (delta.square() / (delta.square() + sigma)).flatten(1).mean(1)
        adam.zero_grad()
        loss.sum().backward()
        assert delta.grad is not None
        delta.grad /= delta.grad.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        lr = adam.param_groups[0]["lr"]
        adam.step()
        schedule.step()
        with torch.no_grad():
            delta.copy_((x + delta).clamp(0, 1) - x)
            tau = (tau + torch.where(wrong, 0.01 * lr, -0.01 * lr)).clamp(0, 1)
            clear = (delta.abs() - tau.view(-1, 1, 1, 1)).abs() > 1e-4  # not on the threshold, where rounding decides
            delta[delta.abs() < tau.view(-1, 1, 1, 1)] = 0
        gradient = torch.where(wrong.view(-1, 1, 1, 1), 0, v)
        state = attack.step(p, state, answer(gradient, wrong, value.detach().clamp_max(0)))
        assert clear.float().mean() > 0.9
        assert torch.allclose(state.query[clear], (x + delta.detach())[clear], atol=1e-4)
        assert torch.equal(state.query == x, state.delta == 0) and torch.allclose(state.tau, tau, atol=1e-6)
        state = replace(state, delta=delta.detach().clone(), query=x + delta.detach())
    assert seen == {False, True}
    assert attack.objective(p, torch.eye(COUNT, 3)[p.y]).tolist() == [-1.0] * COUNT
    assert attack.objective(p, torch.eye(COUNT, 3)[(p.y + 1) % 3]).tolist() == [0.0] * COUNT
