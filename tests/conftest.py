"""Settings every test shares."""

import pytest
from hypothesis import settings

settings.register_profile("advbench", deadline=None)  # a busy machine is no failure
settings.load_profile("advbench")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # several test processes on few cores: more threads are many times slower
