"""How many of PyTorch's threads a process of an evaluation uses on a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from advbench import rng
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.engine.oracle import Oracle, gradient
from advbench.engine.search import exact_most
from advbench.evaluator.precision import HEAVY_MULTIPLY_ADDS, multiply_adds

MULTIPLY_ADDS_PER_THREAD = 1e7  # of a pass: the threads meet after every operation, and with fewer that costs more


@contextmanager
def enough_threads(oracle: Oracle, data: Dataset, attacks: Sequence[Attack]) -> Iterator[None]:
    """Inside, a light network on a CPU uses the threads that its passes in `attacks` keep busy, or fewer.

    More than one are used only where they are faster and round alike: processes that share the images have one each,
    and threads on cores that are busy wait for each other.
    """
    threads = torch.get_num_threads()
    a_row = multiply_adds(oracle.net, data) if threads > 1 and data.device.type == "cpu" else HEAVY_MULTIPLY_ADDS
    try:
        if a_row < HEAVY_MULTIPLY_ADDS:
            busy = min(threads, int(a_row * oracle.slots / MULTIPLY_ADDS_PER_THREAD))
            torch.set_num_threads(fastest(oracle, data.shape, attacks, busy) if busy > 1 else 1)
        yield
    finally:
        torch.set_num_threads(threads)


def fastest(oracle: Oracle, shape: tuple[int, ...], attacks: Sequence[Attack], most: int) -> int:
    """The first of `most`, most / 2, ... threads by which passes of random images are faster and round alike, or 1."""
    x = torch.rand(oracle.slots, *shape, generator=torch.Generator().manual_seed(0))
    kinds = {(exact_most(one, len(x)), asks != "logits") for one in attacks for asks in one.turn}
    try:
        with rng.kept():
            seconds, bits = trial(oracle, x, kinds, 1)
            while most > 1:
                theirs, found = trial(oracle, x, kinds, most)
                if theirs < seconds and all(map(torch.equal, found, bits)):
                    return most
                most //= 2
    except Exception:  # raised by the model's own code, or for want of memory: the attack will meet it
        return 1
    return 1


def trial(oracle: Oracle, x: Tensor, kinds: set[tuple[int, bool]], threads: int) -> tuple[float, list[Tensor]]:
    """The seconds and the results of passes on images x with `threads` threads. `kinds`: rows, and whether backward."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        found = [oracle.net(x)]
    for _ in range(2):  # the first time includes what is made once
        began = time.perf_counter()
        for rows, backward in sorted(kinds):
            query = x[:rows].clone().requires_grad_(backward)
            with torch.set_grad_enabled(backward):
                logits = oracle.search(query)
                found += [logits.detach(), gradient(logits.float().square(), query)] if backward else [logits]
        seconds = time.perf_counter() - began
    return seconds, found
