"""The reference package: its attacks run one by one give what it gives on its own, and can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torch.nn import functional

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Journal, Settings, evaluate, reference
from advbench.record import Flag

EPS = ["0.05", "0.1"]


class Masked(nn.Module):
    """A linear net whose gradients are noise."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.detach()) + 1e-6 * (x.sum((1, 2, 3))[:, None] + torch.arange(10.0)).sin()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(24))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y = load("digits", "train").batch(slice(None))
    optim = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(100):
        optim.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optim.step()
    return net.eval()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    made = AutoAttack.__init__

    def short(self: Any, *args: Any, **how: Any) -> None:
        made(self, *args, **how)
        self.square.n_queries = 100
        self.fab.n_iter = self.apgd.n_iter = self.apgd_targeted.n_iter = 5

    monkeypatch.setattr(AutoAttack, "__init__", short)


@pytest.mark.parametrize("name", reference.VERSIONS)
@pytest.mark.parametrize("norm", ["Linf", "L1"])
def test_the_members_are_the_packages(net: nn.Module, name: str, norm: Any) -> None:
    made = AutoAttack(net, norm=norm, version=reference.VERSIONS[name])  # type: ignore[arg-type]
    assert tuple(made.attacks_to_run) == reference.members(name)


def test_attacks_one_by_one_give_what_the_package_gives(net: nn.Module, digits: Dataset) -> None:
    """Three batches, two sizes: the same samples fall."""
    x, y = digits.batch(slice(None))
    found = evaluate(net, digits, Settings(eps=EPS, engine="reference", slots=10))
    standing = torch.ones(len(y), dtype=torch.bool)
    for place, size in enumerate(EPS):
        rows = standing.nonzero()[:, 0]
        whole = AutoAttack(net, eps=float(size), version="standard", seed=0)
        z, _ = whole.run_standard_evaluation(x[rows], y[rows], batch_size=10)
        standing[rows] = net(z).argmax(1) == y[rows]
        assert np.array_equal(found.fates.standing(place), standing.numpy())
    assert [(ref.name, ref.settings) for ref in found.record.attack] == [
        (name, {"set": "autoattack"}) for name in reference.members("autoattack")
    ]
    assert 0 < standing.sum() < 20


def test_stopped_after_any_batch_it_resumes_to_the_same_record(net: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    how: dict[str, Any] = {"eps": EPS, "engine": "reference", "slots": 10}
    whole = evaluate(net, digits, Settings(**how)).record
    path, goes, polls = tmp_path / "journal", 0, 0

    def stop() -> bool:
        nonlocal polls
        polls += 1
        return goes < 6 and polls % 3 == 0

    while True:
        try:
            again = evaluate(net, digits, Settings(**how), journal=Journal(path, stop=stop), resume=True).record
            break
        except Interrupted:
            goes += 1
    assert goes == 6 and (again.id, again.curve, again.flags) == (whole.id, whole.curve, whole.flags)


def test_square_that_beats_its_gradients_is_flagged(net: nn.Module) -> None:
    data = load("digits", "test").subset(range(80))

    def flags(net: nn.Module) -> dict[str, Flag]:
        return {flag.name: flag for flag in evaluate(net, data, Settings(eps=["0.1"], engine="reference")).record.flags}

    masked = flags(Masked(net))["square-wins"]
    assert masked.severity == "suspect" and masked.detail.startswith("square alone felled")
    assert "square-wins" not in flags(net)


def test_settings_are_refused(net: nn.Module, digits: Dataset) -> None:
    with pytest.raises(UserError, match="leave out --set steps"):
        evaluate(net, digits, Settings(eps=EPS, engine="reference", attack_settings={"steps": 3}))
