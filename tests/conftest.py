"""Settings every test shares."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # several test processes on few cores: more threads are many times slower
