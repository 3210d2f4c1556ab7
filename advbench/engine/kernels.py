"""How PyTorch computes during an attack; recognition of out-of-memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_MEMORY_ERRORS = (
    "out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory",
    "unable to find an engine to execute this computation",  # from cuDNN, if no workspace fits
)  # fmt: skip


@contextmanager
def exact_kernels(device: torch.device) -> Iterator[None]:
    """Inside, CUDA computes fp32 in full precision with deterministic kernels, and `device` is the current device.

    By default convolutions run in TF32, which keeps 10 bits. Streams and graphs belong to the current device.
    """
    with ExitStack() as stack:
        for owner, name, value in _switches():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        yield


def _switches() -> list[tuple[Any, str, Any]]:
    """The switches for exact and deterministic fp32: owner, attribute and value.

    From PyTorch 2.9 on each kind of operation has its own switch; once one of these was used, the older ones raise.
    """
    b = torch.backends
    kernels: list[tuple[Any, str, Any]] = [(b.cudnn, "benchmark", False), (b.cudnn, "deterministic", True)]
    if not hasattr(b.cuda.matmul, "fp32_precision"):
        return [*kernels, (b.cuda.matmul, "allow_tf32", False), (b.cudnn, "allow_tf32", False)]
    owners = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn)  # type: ignore[attr-defined]
    return [*kernels, *((owner, "fp32_precision", "ieee") for owner in owners)]


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an out-of-memory error, on CUDA or CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _MEMORY_ERRORS)
