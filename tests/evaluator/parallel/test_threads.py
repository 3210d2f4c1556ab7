"""How many threads a light network gets: as many as it keeps busy, and one where more would round otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.oracle import Oracle
from advbench.evaluator.parallel import threads
from advbench.evaluator.parallel.threads import enough_threads, same_bits
from advbench.models import build


@pytest.fixture(autouse=True)
def _four_threads_here() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(16))


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0).eval(), slots=16)


class Uneven(nn.Module):
    """Logits that depend on the number of threads in their last digit."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (1 + 2**-20 * torch.get_num_threads())  # type: ignore[no-any-return]


def used(oracle: Oracle, data: Dataset) -> int:
    with enough_threads(oracle, data):
        return torch.get_num_threads()


@pytest.mark.parametrize(("per_thread", "wanted"), [(1e9, 1), (6e5, 2), (1.0, 4)])
def test_a_light_network_gets_the_threads_that_it_keeps_busy(
    oracle: Oracle, digits: Dataset, per_thread: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MULTIPLY_ADDS_PER_THREAD", per_thread)  # a pass has 16 x 84,480
    monkeypatch.setattr(threads, "same_bits", lambda *_: True)
    assert used(oracle, digits) == wanted and torch.get_num_threads() == 4


def test_a_network_that_rounds_by_its_threads_gets_one(
    oracle: Oracle, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MULTIPLY_ADDS_PER_THREAD", 1.0)
    uneven = Oracle(Uneven(oracle.net), slots=16)
    state = torch.get_rng_state()
    assert not same_bits(uneven, digits.shape, 2) and same_bits(uneven, digits.shape, 1)
    assert used(uneven, digits) == 1 and torch.get_num_threads() == 4
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError), enough_threads(uneven, digits):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 4


def test_a_heavy_network_keeps_all(oracle: Oracle, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "HEAVY_MULTIPLY_ADDS", 1e4)
    assert used(Oracle(Uneven(oracle.net), slots=16), digits) == 4
