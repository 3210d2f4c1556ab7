"""Threads that share the rows of a pass on a CPU.

PyTorch's own threads meet after every operation, of which a pass through a small network has many and short ones: two
of them, asleep while they wait as the command line has them, took longer than one. Here each thread takes its share of
the rows through the whole pass. A row's numbers are the same whatever the share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

P = TypeVar("P")
T = TypeVar("T")
MIN_ROWS_PER_THREAD = 16  # rows a thread: with fewer a row takes longer
_STATELESS = ("torch.nn.", "torchvision.", "advbench.")


class RowThreads:
    """At most `threads` threads, the calling one included."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        # PyTorch's own threads are divided among ours, each of which must be told.
        self.inner = max(1, torch.get_num_threads() // threads)
        self._others = (
            ThreadPoolExecutor(threads - 1, "advbench", torch.set_num_threads, (self.inner,)) if threads > 1 else None
        )

    @classmethod
    def fitting(cls, net: nn.Module, slots: int) -> RowThreads:
        """As many as PyTorch would use by itself, where `slots` rows are enough for them; one where a layer of `net` is
        somebody's own and might keep notes from one layer to the next."""
        ours = all(type(module).__module__.startswith(_STATELESS) for module in net.modules())
        on_cpu = all(value.device.type == "cpu" for value in net.parameters())
        return cls(max(1, min(torch.get_num_threads(), slots // MIN_ROWS_PER_THREAD)) if ours and on_cpu else 1)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, the calling thread too has its share of PyTorch's own."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.inner)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def shares(self, rows: int) -> list[slice]:
        """The rows 0 to `rows`, divided."""
        count = max(1, min(self.threads, rows // MIN_ROWS_PER_THREAD))
        bounds = [rows * i // count for i in range(count + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(bounds)]

    def each(self, work: Callable[[P], T], parts: list[P]) -> list[T]:
        """What `work` returns for each part, of as many as there are threads or fewer; the first is done here. Raises
        what it raises."""
        if self._others is None:
            return [work(part) for part in parts]
        begun = [self._others.submit(work, part) for part in parts[1:]]
        try:
            mine = work(parts[0])
        finally:
            wait(begun)  # nobody is left at work on tensors that are about to change
        return [mine, *(other.result() for other in begun)]
