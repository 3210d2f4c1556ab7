"""FAB against pyautoattack: on a trained network our adversarial examples are as near as the package's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn
from torch.nn import functional

from advbench.attacks.fab import FAB, FABT
from advbench.data import load
from advbench.engine.attack import Attack, Samples
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search

NORMS = {"linf": "Linf", "l2": "L2"}
COUNT, STEPS = 50, 15
FORMS: dict[str, tuple[Attack, int]] = {
    "fab": (FAB(name="fab", steps=STEPS), 0),
    "fab-t": (FABT(name="fab-t", steps=STEPS), 9),
}


@dataclass
class Trained:
    """A small network, and test images that it classifies correctly."""

    net: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture(scope="module")
def trained() -> Trained:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()
        ).append(nn.Linear(64, 10))
    x, y = load("digits", "train").batch(slice(None))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(100):
        rows = slice(step % 10 * 128, step % 10 * 128 + 128)
        optimizer.zero_grad()
        functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    net.eval().requires_grad_(False)
    x, y = load("digits", "test").batch(slice(None))
    right = (net(x).argmax(1) == y).nonzero()[:COUNT, 0]
    return Trained(net, x[right], y[right])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_points_are_as_near_as_the_packages(trained: Trained, norm: str, form: str) -> None:
    attack, targets = FORMS[form]
    ours, theirs = distances(trained, norm, attack), package(trained, norm, targets)
    assert np.isfinite(ours).all() and np.isfinite(theirs).all()
    assert np.median(ours) <= 1.01 * np.median(theirs)
    # Also sample by sample, and at both ends of the distribution.
    assert np.median(ours / theirs) <= 1.01
    assert (np.quantile(ours, [0.1, 0.9]) <= 1.02 * np.quantile(theirs, [0.1, 0.9])).all()


def distances(of: Trained, norm: str, attack: Attack) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Distances (n,) of the nearest adversarial examples that the engine finds."""
    oracle = Oracle(of.net, slots=COUNT)
    rows = torch.arange(len(of.y))
    eps = torch.full((len(of.y),), torch.inf, dtype=torch.float64)
    samples = Samples(lambda some: of.x[some], of.y, rows, eps, oracle.logits(of.x))
    return Search(attack.for_model(norm, 10), samples, oracle, norm=norm, seed=0).run().distance.numpy()


def package(of: Trained, norm: str, targets: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Distances (n,) of the nearest adversarial examples that the package finds over all targets; inf if none."""
    fab: Any = FABAttack_PT(of.net, norm=NORMS[norm], n_iter=STEPS, eps=1e6, targeted=bool(targets))
    best = np.full(len(of.y), np.inf)
    for rank in range(max(targets, 1)):
        fab.target_class = rank + 2  # 1 is the class itself
        z = fab.attack_single_run(of.x, of.y, is_targeted=bool(targets))
        away = (z - of.x).flatten(1).double().norm(p=np.inf if norm == "linf" else 2, dim=1)
        felled = of.net(z).argmax(1) != of.y
        best = np.minimum(best, torch.where(felled, away, torch.inf).numpy())
    return best
