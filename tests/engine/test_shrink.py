"""Slots given up at the end of a search: the verdicts of the whole number, for fewer passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from advbench.data import load
from advbench.engine.attack import Attack, Samples
from advbench.engine.kernels import untouched
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search, Verdicts
from advbench.engine.search_copy import search_copy
from advbench.evaluator.attack_set import choose
from advbench.models import build
from advbench.models.base import Model

SLOTS, N = 64, 90


@pytest.fixture(scope="module")
def net(taught: Callable[[Model], Model]) -> Model:
    """Some images fall early, others never."""
    return taught(build("small_cnn_16_32_100", num_classes=10, in_channels=1, image_size=8, seed=0))


def attack(name: str) -> Attack:
    settings = {"n_queries": 400} if name == "square" else {"steps": 40}
    return choose(name, settings, norm="linf", classes=10)[0][0]


def search(one: Attack, net: nn.Module, copy: nn.Module | None = None, slots: int = SLOTS) -> Search:
    data = load("digits", "test").subset(range(N))
    x, y = data.batch(slice(0, N))
    oracle = Oracle(net, search_copy(net, example=x[:1])[0] if copy is None else copy, slots=slots)
    eps = torch.full((N,), 0.12, dtype=torch.float64)
    samples = Samples(lambda rows: x[rows], y, torch.arange(N), eps, oracle.logits(x))
    oracle.forwards = 0
    return Search(one, samples, oracle, norm="linf", seed=0, keep_points=True)


def same(one: Verdicts, other: Verdicts) -> bool:
    points = one.points.keys() == other.points.keys() and all(
        torch.equal(point, other.points[row]) for row, point in one.points.items()
    )
    return points and torch.equal(one.fell, other.fell) and torch.equal(one.distance, other.distance)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "fab", "square", "pgd"])
def test_the_verdicts_are_those_of_all_slots(name: str, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with untouched(net):
        fewer = search(attack(name), net)
        verdicts = fewer.run()
        assert len(fewer.item) < SLOTS and len(fewer.item) % 16 == 0
        monkeypatch.setattr(Oracle, "shrinks", lambda *_: False)
        whole = search(attack(name), net)
        assert same(whole.run(), verdicts) and 0 < verdicts.fell.sum() < N
    assert len(whole.item) == SLOTS
    assert fewer.oracle.forwards < 0.95 * whole.oracle.forwards


@pytest.mark.parametrize("name", ["apgd-t", "square"])
def test_a_kill_after_slots_were_given_up(name: str, net: nn.Module) -> None:
    def until(rounds: int) -> Iterator[None]:
        yield from [None] * rounds
        raise InterruptedError

    with untouched(net):
        verdicts = search(attack(name), net).run()
        killed = search(attack(name), net)
        left = None

        def stop(running: Search) -> None:
            nonlocal left
            if left is None and len(running.item) < SLOTS:
                left = until(7)
            if left is not None:
                next(left)

        with pytest.raises(InterruptedError):
            killed.run(stop)
        saved = killed.snapshot()
        assert len(saved["item"]) < SLOTS and max(saved["item"]) >= 0
        resumed = search(attack(name), net)
        resumed.restore(saved)
        assert same(resumed.run(), verdicts)


class Counting(nn.Module):
    """Its logits depend a little on how many images it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net, set[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.rows.add(len(x))
        return self.net(x) + 1e-6 * len(x) * x.flatten(1)[:, :10]  # type: ignore[no-any-return]


def test_slots_stay_where_numbers_would_change(net: nn.Module) -> None:
    with untouched(net):
        counting = Counting(net)
        one = search(attack("apgd-ce"), net, counting)
        one.run()
        assert len(one.item) == SLOTS
        assert not one.oracle.alone(32, torch.Size((1, 8, 8))) and counting.rows <= {SLOTS, 48, 32, 16}


def test_a_short_attack_is_not_worth_the_trial(net: nn.Module) -> None:
    with untouched(net):
        one = search(replace(attack("pgd"), steps=2), net)
        one.run()
    assert len(one.item) == SLOTS and one.oracle.forwards % SLOTS == 0


def test_what_may_be_asked_in_shorter_passes() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    plain, random = Oracle(nn.Identity(), slots=4), Oracle(nn.Identity(), slots=4, random=True)
    pgd = attack("pgd")
    assert plain.shrinks(pgd, cpu) and not plain.shrinks(pgd, cuda) and not random.shrinks(pgd, cpu)
    assert not plain.shrinks(replace(pgd, straight_through=True), cpu)
    assert not plain.shrinks(attack("feature-pgd"), cpu)
