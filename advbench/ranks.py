"""Several processes that share one job, as `torchrun` starts them. A single process is rank 0 of 1 and loads no torch.

A command enters `joined()`. Outside of it a process counts as alone, whatever its environment says. Library calls in
another distributed program therefore never wait for processes that do not make the same call.
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
# Long, because ranks may wait for hours for one with more to do; when a rank dies, the launcher ends the others.
_TIMEOUT = timedelta(days=7)


@dataclass
class _Place:
    rank: int = 0
    world: int = 1


_here = _Place()


def rank() -> int:
    """The number of this process among those that joined, from 0."""
    return _here.rank


def world() -> int:
    """How many processes joined; 1 outside of `joined`."""
    return _here.world


def launched() -> tuple[int, int]:
    """(rank, world) from the launcher's RANK and WORLD_SIZE, (0, 1) without them. Raises UserError for bad values."""
    words = [os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))]
    if not all(word.isascii() and word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
        raise UserError(f"RANK={words[0]} of WORLD_SIZE={words[1]} is not valid: start with torchrun, or unset both")
    return int(words[0]), int(words[1])


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _here.world > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes of the same torchrun, by gloo for CPU tensors and NCCL for CUDA tensors.

    Does nothing in a single process, or when already joined. Raises UserError when the other processes cannot be
    reached.
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
            distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"rank {number} of {count} cannot reach the others: {reason}; start with torchrun"
            ) from error
    _here.rank, _here.world = distributed.get_rank(), distributed.get_world_size()
    try:
        yield
    finally:
        _here.rank, _here.world = 0, 1
        if own:
            distributed.destroy_process_group()


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in order of rank, on every rank. Values must be picklable."""
    if _here.world == 1:
        return [value]
    from torch import distributed

    found: list[T | None] = [None] * _here.world
    distributed.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def first(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 only, and return its result, or raise its error, on every rank."""
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
    """Call `load` on rank 0, then on all others, which find the files that rank 0 has fetched."""
    found: list[T] = []
    first(lambda: found.append(load()))
    return found[0] if found else load()


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is true on any rank. Uses the CPU, so that no device is waited for."""
    if _here.world == 1:
        return flags
    import torch
    from torch import distributed

    raised = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return tuple(bool(value) for value in raised)


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors in place by their means over the ranks, in one message per dtype and device."""
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
    """The rows of all ranks (equally many), in order of rank, on every rank; without gradient."""
    if _here.world == 1:
        return rows.detach()
    import torch
    from torch import distributed

    found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(_here.world)]
    distributed.all_gather(found, rows.detach().contiguous())
    return torch.cat(found)
