"""How many threads a light network gets: those that it keeps busy, where they are faster and round alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.pgd import PGD
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.oracle import Oracle
from advbench.evaluator import threads
from advbench.evaluator.threads import enough_threads, fastest, trial
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


class Changed(nn.Module):
    """Logits whose last digit depends on the number of threads."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (1 + 2**-20 * torch.get_num_threads())  # type: ignore[no-any-return]


def used(oracle: Oracle, data: Dataset) -> int:
    with enough_threads(oracle, data, [PGD(name="pgd")]):
        return torch.get_num_threads()


@pytest.mark.parametrize(("per_thread", "wanted"), [(1e9, []), (6e5, [2]), (1.0, [4])])
def test_a_light_network_gets_no_more_than_it_keeps_busy(
    oracle: Oracle, digits: Dataset, per_thread: float, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(threads, "MULTIPLY_ADDS_PER_THREAD", per_thread)  # a pass has 16 x 84,480
    monkeypatch.setattr(threads, "fastest", lambda *given: tried.append(given[-1]) or given[-1])
    assert used(oracle, digits) == (wanted or [1])[0] and tried == wanted and torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("seconds", "bits", "wanted"),
    [
        ({1: 3, 4: 1}, {1: 0, 4: 0}, 4),
        ({1: 3, 4: 5, 2: 2}, {1: 0, 4: 0, 2: 0}, 2),  # four wait for each other
        ({1: 3, 4: 1, 2: 2}, {1: 0, 4: 1, 2: 0}, 2),  # four round otherwise
        ({1: 3, 4: 1, 2: 2}, {1: 0, 4: 1, 2: 1}, 1),
        ({1: 3, 4: 5, 2: 4}, {1: 0, 4: 0, 2: 0}, 1),
    ],
)
def test_threads_are_used_where_they_are_faster_and_round_alike(
    oracle: Oracle,
    digits: Dataset,
    seconds: dict[int, int],
    bits: dict[int, int],
    wanted: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "trial", lambda *given: (seconds[given[-1]], [torch.tensor(bits[given[-1]])]))
    assert fastest(oracle, digits.shape, [], 4) == wanted


def test_a_trial_sees_rounding_randomness_and_faults(oracle: Oracle, digits: Dataset) -> None:
    kinds, x = {(16, True), (8, False)}, torch.rand(16, *digits.shape)
    (_, one), (_, two) = (trial(Oracle(Changed(oracle.net), slots=16), x, kinds, count) for count in (1, 2))
    assert len(one) == len(two) == 1 + 2 * 3 and not any(map(torch.equal, one, two))
    random, failing, state = nn.Dropout().train(), nn.Linear(3, 3), torch.get_rng_state()
    for net in (random, failing):
        assert fastest(Oracle(net, slots=16), digits.shape, [PGD(name="pgd")], 4) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_is_restored(oracle: Oracle, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), enough_threads(oracle, digits, []):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 4
    monkeypatch.setattr(threads, "HEAVY_MULTIPLY_ADDS", 1e4)
    assert used(oracle, digits) == 4  # a heavy network keeps all
