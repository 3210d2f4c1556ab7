"""One thread, as each process has that shares an evaluation of a light network: with more of them PyTorch may round a
row by its place in the batch, and then packed passes are not used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_here() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
