"""Auto-PGD against pyautoattack: from the same start, every query is the package's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pyautoattack import autopgd_base
from torch import Tensor, nn

from advbench import rng
from advbench.attacks.apgd import APGD
from advbench.engine.attack import Answer, Problem
from advbench.engine.losses import ce, wrong
from advbench.threat import around

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.1, "l2": 0.4, "l1": 1.5}
COUNT = 12


def curved() -> nn.Module:
    """A network with a curved loss, so that steps overshoot and are halved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 6))
    for layer in (net[1], net[3]):
        layer.weight.data *= 4  # type: ignore[operator]
    return net.requires_grad_(False)


@pytest.mark.parametrize(
    ("norm", "steps", "larger_eps"),
    [("linf", 100, False), ("linf", 40, False), ("l2", 100, False), ("l1", 40, False), ("l1", 40, True)],
)
def test_every_query_is_the_packages(norm: str, steps: int, larger_eps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = curved()
    # Grey images, whose balls [0, 1] does not cut: the package projects onto ball and box one after the other.
    x = 0.5 + 0.1 * (torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5)
    y = net(x).argmax(1)
    region = around(norm, x, torch.full((COUNT,), EPS[norm], dtype=torch.float64))
    p = Problem(region, y, torch.full_like(y, -1), rng.keys(0, "apgd", torch.arange(COUNT)))
    ours = queries(net, APGD(name="apgd", steps=steps, larger_eps=larger_eps), p)

    # Give the package our noise, and keep it from counting rounding errors as non-zero elements.
    noise = {"rand": rng.uniform, "randn": rng.normal}
    for name, draw in noise.items():
        monkeypatch.setattr(torch, name, lambda shape, draw=draw: draw(p.key, tuple(shape)[1:]))
    monkeypatch.setattr(torch, "randn_like", lambda like: rng.normal(p.key, tuple(like.shape)[1:]))
    monkeypatch.setattr(autopgd_base, "L0_norm", lambda d: (d.abs() > 1e-6).float().flatten(1).sum(1))
    theirs = package(net, x, y, norm, steps, larger_eps)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.equal(ours[0], ours[-1])


def queries(net: nn.Module, attack: APGD, p: Problem) -> Tensor:
    """All queries of our attack: (queries, S, C, H, W)."""
    state, asked = attack.start(p), []
    while not bool(attack.done(state).all()):
        query = state.query.detach().requires_grad_()
        logits = net(query)
        value = ce(logits, p.y, p.target)
        (grad,) = torch.autograd.grad(value.sum(), query)
        asked.append(state.query)
        state = attack.step(p, state, Answer(logits.detach(), wrong(logits, p.y), value.detach(), grad))
    return torch.stack(asked)


def package(net: nn.Module, x: Tensor, y: Tensor, norm: str, steps: int, larger_eps: bool) -> Tensor:
    """All queries of the package: (queries, S, C, H, W)."""
    asked = []

    def noted(query: Tensor) -> Tensor:
        asked.append(query.detach().clone())
        return net(query)  # type: ignore[no-any-return]

    apgd: Any = autopgd_base.APGDAttack(
        noted, n_iter=steps, norm=NORMS[norm], eps=EPS[norm], loss="ce", use_largereps=larger_eps
    )
    apgd.init_hyperparam(x)
    if larger_eps:
        lengths = [math.ceil(0.3 * steps)] * 2
        apgd.decr_eps_pgd(x, y, [factor * EPS[norm] for factor in (3, 2, 1)], [*lengths, steps - sum(lengths)])
    else:
        apgd.attack_single_run(x, y)
    return torch.stack(asked)
