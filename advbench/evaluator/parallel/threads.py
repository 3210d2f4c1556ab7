"""How many of PyTorch's threads an evaluation by one process uses on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from advbench import rng
from advbench.data.dataset import Dataset
from advbench.engine.oracle import Oracle
from advbench.engine.rounding import random_images, results
from advbench.evaluator.precision import HEAVY_MULTIPLY_ADDS, multiply_adds

MULTIPLY_ADDS_PER_THREAD = 1e7  # of a pass: the threads meet after every operation, and with fewer that costs more


@contextmanager
def enough_threads(oracle: Oracle, data: Dataset) -> Iterator[None]:
    """Inside, a light network on a CPU uses as many threads as its passes keep busy.

    It uses one where more of them would round otherwise: processes that share the images have one each.
    """
    threads = torch.get_num_threads()
    a_row = multiply_adds(oracle.net, data) if data.device.type == "cpu" else HEAVY_MULTIPLY_ADDS
    if a_row < HEAVY_MULTIPLY_ADDS:
        busy = max(1, min(threads, int(a_row * oracle.slots / MULTIPLY_ADDS_PER_THREAD)))
        torch.set_num_threads(busy if busy > 1 and same_bits(oracle, data.shape, busy) else 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def same_bits(oracle: Oracle, shape: tuple[int, ...], threads: int) -> bool:
    """Whether passes of all slots on images of `shape` (C, H, W) round alike with `threads` threads and with one."""
    x = random_images(shape, oracle.slots)
    before = torch.get_num_threads()

    def found(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        forward = results(oracle.net, x, backward=False) + results(oracle.search, x, backward=False)
        return forward + results(oracle.search, x, backward=True)

    try:
        with rng.kept():
            return all(map(torch.equal, found(1), found(threads)))
    except Exception:  # raised by the model's own code, or for want of memory: the attack will meet it
        return False
    finally:
        torch.set_num_threads(before)
