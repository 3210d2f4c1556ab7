"""How many processes fit into the memory of a machine."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from advbench.evaluator.parallel import memory

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 16 * GIB // 4096, "SC_PAGE_SIZE": 4096}.__getitem__)


def wide(channels: int) -> nn.Module:
    """A net whose pass keeps the image and, twice, its `channels` maps: for the second convolution and for ReLU."""
    return nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 1, 1), nn.Flatten())


@pytest.mark.usefixtures("machine")
class TestRoom:
    def test_of_small_nets_the_runtime_decides(self) -> None:
        assert memory.processes_that_fit(wide(1), torch.rand(8, 1, 8, 8)) == 15  # and not 16: there are weights as well

    def test_activations_count_for_every_row(self) -> None:
        x = torch.rand(64, 1, 32, 32)
        a_row = 4 * 1024 * (1 + 512)  # ReLU's result is what the next convolution keeps, and counts twice
        held = memory.RUNTIME_BYTES + 64 * (a_row + 4 * 1024 * 512)
        assert memory.processes_that_fit(wide(512), x) == 8 * GIB // held
        assert memory.processes_that_fit(wide(512), x[:32]) > memory.processes_that_fit(wide(512), x)

    def test_weights_count_with_their_copies(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2**19, bias=False))  # an eighth of a GiB
        assert memory.RUNTIME_BYTES == GIB // 2
        assert memory.processes_that_fit(net, torch.rand(8, 1, 8, 8)) == 6  # of 0.5 + 6 / 8 GiB each

    def test_one_process_always_fits(self) -> None:
        assert memory.processes_that_fit(wide(512), torch.rand(1, 1, 64, 64).expand(4096, -1, -1, -1)) == 1

    def test_a_model_without_gradients(self) -> None:
        class Outside(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.from_numpy(x.numpy().reshape(len(x), -1))

        assert memory.processes_that_fit(Outside(), torch.rand(4, 1, 8, 8)) == 16
