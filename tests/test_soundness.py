"""Nothing is proved that falls: proofs against attacks on small nets of every kind that has bounds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.attacks.apgd import APGD
from advbench.certify import bounds, branching, certify, traced
from advbench.certify.relaxations import Lines, Picks
from advbench.data import load
from advbench.engine.attack import Samples
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search

COUNT = 36  # images, each at both of SHARES
SHARES = (1, 2)  # of an eps at which CROWN proves about half of them


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first((x - 0.5) / 0.4))
        h = F.relu(h + self.norm(self.second(h)))
        return self.last(h.flatten(1))


def mlp(*act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), act[0], nn.Linear(16, 12), act[-1], nn.Linear(12, 10))


def cnn(*middle: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), *middle, nn.Flatten(), nn.Linear(features, 10))


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(nn.ReLU()),
    "leaky relu": lambda: mlp(nn.LeakyReLU(0.2), nn.LeakyReLU()),
    "sigmoid": lambda: mlp(nn.Sigmoid()),
    "tanh": lambda: mlp(nn.Tanh()),
    "softplus": lambda: mlp(nn.Softplus()),
    "cnn": lambda: cnn(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), features=64),
    "batch norm": lambda: cnn(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU(), features=16),  # noqa: E501
    "max pool": lambda: cnn(nn.ReLU(), nn.MaxPool2d(2), features=16),
    "average pool": lambda: cnn(nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 8, 1), nn.ReLU(), features=32),
    "residual": Residual,
}  # fmt: skip
NORMS = {"linf": 0.2, "l2": 1.0, "l1": 4.0}  # with an eps at which less than half of the images are proved


@pytest.fixture(scope="module")
def trained() -> Callable[[str], nn.Module]:
    """The net of a kind, trained for a moment on digits."""
    x, y = load("digits", "train").batch(slice(0, 1000))
    known: dict[str, nn.Module] = {}

    def net(kind: str) -> nn.Module:
        if kind not in known:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made = NETS[kind]()
                adam = torch.optim.Adam(made.parameters(), lr=0.02)
                for step in range(60):
                    some = slice(step % 4 * 250, step % 4 * 250 + 250)
                    adam.zero_grad()
                    F.cross_entropy(made(x[some]), y[some]).backward()
                    adam.step()
            known[kind] = made.eval()
        return known[kind]

    return net


def felled(net: nn.Module, x: Tensor, y: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Which images (S,) APGD fells at their eps (S,), aimed at the margin to each of the nearest classes."""
    attack = APGD(name="apgd", loss="cw", n_targets=3, steps=20).for_model(norm, 10)
    oracle = Oracle(net, slots=3 * len(y))
    samples = Samples(lambda some: x[some], y, torch.arange(len(y)), eps, oracle.logits(x))
    return Search(attack, samples, oracle, norm=norm, seed=0).run().fell


def verdicts(net: nn.Module, norm: str) -> tuple[Tensor, Tensor]:
    """Which pairs (COUNT * len(SHARES),) of an image and an eps are proved, and which fall."""
    x, _ = load("digits", "test").batch(slice(0, COUNT))
    made, eps = traced(net, x), NORMS[norm]
    with torch.no_grad():
        y = net(x).argmax(1)
    few = slice(0, COUNT // 3)
    while int(certify(made, x[few], y[few], eps, norm, thorough=False).sum()) < COUNT / 6:
        eps /= 1.5
    sizes = [share * eps for share in SHARES]
    proved = torch.cat([certify(made, x, y, size, norm, seconds=9) for size in sizes])
    each = torch.tensor(sizes, dtype=torch.float64).repeat_interleave(COUNT)
    return proved, felled(net, x.repeat(len(SHARES), 1, 1, 1), y.repeat(len(SHARES)), each, norm)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps of the slopes, and no branching, which `test_certify` holds to exact minima."""
    monkeypatch.setattr(sys.modules["advbench.certify.certify"], "STEPS", 10)
    monkeypatch.setattr(branching, "MOST", 0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", NETS)
def test_no_image_is_proved_and_felled(trained: Callable[[str], nn.Module], kind: str, norm: str) -> None:
    proved, fell = verdicts(trained(kind), norm)
    assert len(NETS) * len(NORMS) * len(proved) >= 2000
    assert int(proved.sum()) >= COUNT / 4 and int(fell.sum()) > 0 and not bool((proved & fell).any())


@pytest.mark.parametrize("kind", ["mlp", "leaky relu", "sigmoid", "tanh", "softplus", "max pool"])
def test_lines_that_hold_only_in_a_part_of_an_interval_are_found(
    trained: Callable[[str], nn.Module], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relax = bounds.Bounds.relax

    def unsound(self: bounds.Bounds, number: int) -> None:
        """The upper line comes down to the lower one in the middle."""
        relax(self, number)
        lines = self.lines[number]
        if isinstance(lines, Picks):
            self.lines[number] = replace(lines, intercept=torch.zeros_like(lines.intercept))
        elif isinstance(lines, Lines):
            source = self.graph.nodes[number].inputs[0]
            middle = (self.low[source] + self.high[source]) / 2
            apart = (lines.c - lines.a) * middle + lines.d - lines.b
            self.lines[number] = replace(lines, d=lines.d - apart)

    monkeypatch.setattr(bounds.Bounds, "relax", unsound)
    proved, fell = verdicts(trained(kind), "linf")
    assert bool((proved & fell).any())


@pytest.mark.parametrize("norm", NORMS)
def test_balls_that_are_too_small_are_found(
    trained: Callable[[str], nn.Module], norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = bounds.Ball.around
    monkeypatch.setattr(bounds.Ball, "around", lambda x, eps, norm: around(x, 0.7 * eps, norm))
    proved, fell = verdicts(trained("mlp"), norm)
    assert bool((proved & fell).any())
