"""Threads that share a pass: the same verdicts to the bit, the same counts, and nothing is lost when one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.kernels import untouched
from advbench.engine.row_threads import RowThreads
from advbench.evaluator.attack_set import choose
from advbench.evaluator.journal import Journal
from advbench.evaluator.runner import Bench
from advbench.models import build
from advbench.models.base import Model


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(120))


@pytest.fixture(scope="module")
def net(taught: Callable[[Model], Model]) -> Model:
    return taught(build("small_cnn_16_32_100", num_classes=10, in_channels=1, image_size=8, seed=0))


def struck(net: nn.Module, data: Dataset, attack: str, norm: str = "linf") -> tuple[int, list[np.ndarray], list[int]]:
    """The threads at work, the verdicts and the passes."""
    settings = {"n_queries": 60} if attack == "square" else {"steps": 4}
    (one,) = choose(attack, settings, norm=norm, classes=10)[0]
    with untouched(net):
        bench = Bench(net, data, norm=norm, seed=0, slots=64, precision="fp32", journal=Journal())
        rows = np.flatnonzero(bench.correct)
        found = bench.strike(one, rows, np.full(len(rows), 0.1))
    passes = [bench.oracle.forwards, bench.oracle.backwards]
    return bench.oracle.row_threads.threads, [found.fell.numpy(), found.distance.numpy()], passes


@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-t", "fab", "fab-t", "square", "feature-pgd", "pgd"])
def test_verdicts_and_counts_are_those_of_one_thread(
    attack: str, net: Model, digits: Dataset, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew, together, passes = struck(net, digits, attack)
    assert crew == threads
    monkeypatch.setattr(RowThreads, "of", classmethod(lambda cls, net, slots: cls()))
    crew, alone, counted = struck(net, digits, attack)
    assert crew == 1 and 0 < alone[0].sum() < len(alone[0])
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True)) and passes == counted


def test_rows_are_divided_and_small_shares_are_not_made() -> None:
    assert RowThreads(3).shares(64) == [slice(0, 21), slice(21, 42), slice(42, 64)]
    assert RowThreads(3).shares(40) == [slice(0, 20), slice(20, 40)]
    assert RowThreads(3).shares(8) == [slice(0, 8)]


def test_who_gets_threads(net: Model, threads: int) -> None:
    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x

    assert RowThreads.fitting(net, 64).threads == threads and RowThreads.fitting(net, 16).threads == 1
    assert RowThreads.fitting(nn.Sequential(Noting(), nn.Flatten(), nn.Linear(64, 10)), 64).threads == 1


def test_pytorchs_own_threads_are_divided_inside_and_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    crew = RowThreads(2)
    with crew.at_work():
        inside = crew.each(lambda _: torch.get_num_threads(), [0, 1])
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert inside == [2, 2] and after == 4


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_is_raised_once_all_have_ended(failing: int) -> None:
    ended = threading.Event()

    def work(part: int) -> int:
        if part == failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ended.wait(0.2)
        ended.set()
        return part

    with pytest.raises(torch.OutOfMemoryError):
        RowThreads(2).each(work, [0, 1])
    assert ended.is_set()
