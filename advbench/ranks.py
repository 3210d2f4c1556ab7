"""Several processes that share one job, as `torchrun` starts them. Without it: rank 0 of 1, and no torch is loaded.

A command enters `joined()`; before and outside of it a process is alone, whatever its environment says, so that
library calls in somebody else's distributed program never wait for processes that do not call them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from advbench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
# Ranks may wait for hours where one has more to do; the launcher ends all when one dies.
_PATIENCE = timedelta(days=7)


@dataclass
class _Place:
    rank: int = 0
    world: int = 1


_here = _Place()


def rank() -> int:
    """This process's number among those that joined, from 0."""
    return _here.rank


def world() -> int:
    """How many processes joined; 1 outside of `joined`."""
    return _here.world


def launched() -> tuple[int, int]:
    """(rank, world) as the launcher's environment (RANK, WORLD_SIZE) has them, (0, 1) without. Raises UserError."""
    words = [os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))]
    if not all(word.isascii() and word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
        raise UserError(f"RANK={words[0]} of WORLD_SIZE={words[1]} is no rank: start with torchrun, or unset both")
    return int(words[0]), int(words[1])


def local_rank() -> int:
    """This process's number on its own machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _here.world > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes of the same torchrun: gloo for the CPU, NCCL beside it where there is CUDA.

    Does nothing in a single process, or when joined already. Raises UserError when the others cannot be met.
    """
    number, count = launched()
    if count == 1 or _here.world > 1:
        yield
        return
    import torch
    from torch import distributed

    cuda = torch.cuda.is_available()
    own = not distributed.is_initialized()
    if own:
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        try:
            distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"rank {number} of {count} cannot meet the others: {reason}; start with torchrun"
            ) from error
    _here.rank, _here.world = distributed.get_rank(), distributed.get_world_size()
    try:
        yield
    finally:
        _here.rank, _here.world = 0, 1
        if own:
            distributed.destroy_process_group()


def gather_objects(value: T) -> list[T]:
    """The `value` of every rank, in their order, on every rank: anything that can be pickled."""
    if _here.world == 1:
        return [value]
    from torch import distributed

    found: list[T | None] = [None] * _here.world
    distributed.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def first(make: Callable[[], T]) -> T:
    """What `make()` returns or raises on rank 0, the only one that calls it, on every rank."""
    if _here.world == 1:
        return make()
    value: T | None = None
    error: Exception | None = None
    if _here.rank == 0:
        try:
            value = make()
        except Exception as raised:
            error = raised
    value, error = gather_objects((value, error))[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def in_turn(load: Callable[[], T]) -> T:
    """What `load` gives on each process, on the first one first: what it fetches and keeps, the others find."""
    found: list[T] = []
    first(lambda: found.append(load()))
    return found[0] if found else load()


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether any rank raised it. Goes over the CPU: no device is waited for."""
    if _here.world == 1:
        return flags
    import torch
    from torch import distributed

    raised = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return tuple(bool(value) for value in raised)


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors by their means over the ranks, in place, in one message a type."""
    if _here.world == 1:
        return
    import torch
    from torch import distributed

    kinds: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    with torch.no_grad():
        for alike in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            distributed.all_reduce(flat)
            flat /= _here.world
            for tensor, mean in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(mean.view(tensor.shape))


def whole(rows: Tensor) -> Tensor:
    """The rows of every rank (equally many), one rank's after the other's, on every rank; without gradient."""
    if _here.world == 1:
        return rows.detach()
    import torch
    from torch import distributed

    found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(_here.world)]
    distributed.all_gather(found, rows.detach().contiguous())
    return torch.cat(found)
