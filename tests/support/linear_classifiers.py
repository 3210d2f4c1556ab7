"""Linear classifiers with known distances to the decision boundary, and functions that attack them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.attacks.feature_pgd import FeaturePGD
from advbench.attacks.multi_task import MultiTask
from advbench.attacks.transfer import Transfer
from advbench.data import load
from advbench.engine.attack import Attack, Samples
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.engine.verdicts import Verdicts
from advbench.models.tasks import Head

Floats = NDArray[np.float64]
Net = TypeVar("Net", bound=nn.Module)
SIDE, COUNT = 6, 16


@pytest.fixture(scope="session")
def taught() -> Callable[[Net], Net]:
    """A function that trains a network on digits for a few steps and returns it in eval mode."""

    def teach(made: Net) -> Net:
        data, optimizer = load("digits", "train"), torch.optim.Adam(made.parameters(), 0.01)
        for step in range(60):
            x, y = data.batch(torch.arange(step * 20, step * 20 + 20) % len(data))
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(x), y).backward()
            optimizer.step()
        return made.eval()

    return teach


def least_squares() -> nn.Module:
    """The linear model of least squares on digits, in eval mode.

    A ridge, in float64: pixels that are 0 in every image would make the solution one of many, chosen by the rounding of
    the kernels, and another on each CPU.
    """
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y = load("digits", "train").batch(slice(None))
    x, onto = x.flatten(1).double(), nn.functional.one_hot(y, 10).double() - 0.1
    net[1].weight.data = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(64), x.T @ onto).T.float()
    net[1].bias.data.zero_()
    return net.eval()


class Affine(nn.Module):
    """logits = weight (x - 0.5) + bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], len(weight))
        self.linear.weight.data, self.linear.bias.data = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1) - 0.5)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits serve as features."""
        return self(x), self(x)

    def features(self, x: Tensor) -> Tensor:
        return self(x)

    def head(self, z: Tensor) -> Tensor:
        return z


def gain(norm: str, w: Floats, room: Floats, eps: float) -> float:
    """max <w, d> over ||d|| <= eps with x + d in [0, 1]; `room`: how far each element can move in w's direction."""
    a = np.abs(w)
    if norm == "linf":
        return float((a * np.minimum(room, eps)).sum())
    if norm == "fourier-linf":  # ignores the box
        return float(eps * np.abs(np.fft.fft2(w.reshape(1, SIDE, SIDE), norm="ortho")).sum())
    if norm == "l0":
        return float(np.sort(a * room)[::-1][: int(eps)].sum())
    if norm == "l1":
        order = np.argsort(-a)
        left = np.clip(eps - np.concatenate([[0], np.cumsum(room[order])[:-1]]), 0, room[order])
        return float((a[order] * left).sum())
    if np.sqrt((room**2).sum()) <= eps:
        return float((a * room).sum())
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        if np.sqrt((np.minimum(room, middle * a) ** 2).sum()) > eps:
            high = middle
        else:
            low = middle
    return float((a * np.minimum(room, low * a)).sum())


def smallest_eps(norm: str, w: Floats, room: Floats, need: float) -> float:
    """The smallest eps whose gain is `need`; inf if the box does not allow it."""
    a = np.abs(w)
    if norm == "fourier-linf":
        return need / gain(norm, w, room, 1.0)
    if (a * room).sum() < need:
        return np.inf
    if norm == "l0":
        return float(np.searchsorted(np.cumsum(np.sort(a * room)[::-1]), need) + 1)
    if norm == "l1":
        order = np.argsort(-a)
        filled = np.cumsum((a * room)[order])
        last = int(np.searchsorted(filled, need))
        before = filled[last] - (a * room)[order[last]]
        return float(room[order[:last]].sum() + (need - before) / a[order[last]])
    speed = np.ones_like(a) if norm == "linf" else a
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        if (a * np.minimum(room, middle * speed)).sum() < need:
            low = middle
        else:
            high = middle
    moved = np.minimum(room, high * speed)
    return float(moved.max() if norm == "linf" else np.sqrt((moved**2).sum()))


def prepared(attack: Attack, net: nn.Module, classes: int, heads: Mapping[str, Head] | None = None) -> Attack:
    """`attack` as if prepared: the model itself as source, far-away class centres, and `heads` of tasks."""
    if isinstance(attack, Transfer):
        return replace(attack, source_net=net)
    if isinstance(attack, FeaturePGD):
        return replace(attack, centres=100 * torch.eye(classes))
    if isinstance(attack, MultiTask):
        return replace(attack, heads=heads or {})
    return attack


@dataclass
class Case:
    """A linear model and samples that it classifies correctly; `distance(norm)` (n,) is exact."""

    net: nn.Module
    x: Tensor
    y: Tensor
    weight: Floats
    classes: int

    def distance(self, norm: str) -> Floats:
        with torch.no_grad():
            logits = self.net.double()(self.x.double()).numpy()
        self.net.float()
        best = np.full(len(self.y), np.inf)
        for i, own in enumerate(self.y.tolist()):
            at = self.x[i].double().numpy().ravel()
            for k in range(self.classes):
                w = self.weight[k] - self.weight[own]
                if k != own and np.abs(w).sum() > 0:
                    need = logits[i, own] - logits[i, k]
                    best[i] = min(best[i], smallest_eps(norm, w, np.where(w > 0, 1 - at, at), need))
        return best

    def strike(self, attack: Attack, norm: str, eps: Floats | float, slots: int = COUNT, seed: int = 0) -> Verdicts:
        return self.search(attack, norm, eps, slots=slots, seed=seed).run()

    def search(
        self,
        attack: Attack,
        norm: str,
        eps: Floats | float,
        *,
        slots: int = COUNT,
        seed: int = 0,
        rows: Tensor | None = None,
    ) -> Search:
        """The attack on `rows` of the samples, in that order (all if not given)."""
        at = torch.arange(len(self.y)) if rows is None else rows
        oracle = Oracle(self.net, slots=slots)
        made = prepared(attack.for_model(norm, self.classes), self.net, self.classes)
        sizes = torch.as_tensor(np.broadcast_to(eps, len(self.y)).copy(), dtype=torch.float64)[at]
        samples = Samples(lambda some: self.x[at[some]], self.y[at], at, sizes, oracle.logits(self.x[at]))
        return Search(made, samples, made.oracle(oracle, seed), norm=norm, seed=seed, keep_points=True)


def images(bound: bool, count: int = COUNT) -> Tensor:
    """Grey images, whose balls [0, 1] does not cut, or with `bound` nearly black and white ones."""
    noise = torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    if not bound:
        return 0.5 + 0.15 * (noise - 0.5)
    grey = torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return noise.round() * 0.9 + 0.1 * grey


def two_sided(bound: bool, classes: int = 4) -> Case:
    """Logits u, -u and constants far below them: the gradients of all losses are along the same w."""
    w = torch.randn(SIDE * SIDE, generator=torch.Generator().manual_seed(3))
    weight = torch.zeros(classes, SIDE * SIDE)
    weight[0], weight[1] = w, -w
    bias = torch.full((classes,), -20.0)
    bias[:2] = 0
    x = images(bound)
    net = Affine(weight, bias).eval()
    return Case(net, x, net(x).argmax(1), weight.double().numpy(), classes)


def several(bound: bool, classes: int = 4) -> Case:
    """Classes in random directions, among which an attack has to find the nearest."""
    weight = torch.randn(classes, SIDE * SIDE, generator=torch.Generator().manual_seed(4))
    net = Affine(weight, torch.zeros(classes)).eval()
    x = images(bound)
    return Case(net, x, net(x).argmax(1), weight.double().numpy(), classes)


@pytest.fixture(scope="session")
def cases() -> dict[str, Callable[..., Case]]:
    return {"two-sided": two_sided, "several": several}


@pytest.fixture(scope="session")
def exact_gain() -> Callable[[str, Floats, Floats, float], float]:
    return gain


@pytest.fixture(scope="session")
def exact_least() -> Callable[[str, Floats, Floats, float], float]:
    return smallest_eps
