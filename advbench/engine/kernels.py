"""How PyTorch computes during an attack; recognition of out-of-memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch

_MEMORY_ERRORS = (
    "out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory",
    "unable to find an engine to execute this computation",  # from cuDNN, if no workspace fits
)  # fmt: skip


@contextmanager
def exact_kernels(device: torch.device) -> Iterator[None]:
    """Inside, CUDA computes fp32 in full precision with deterministic kernels, and `device` is the current device.

    By default convolutions run in TF32, which keeps 10 bits. Streams and graphs belong to the current device. The
    caller's autocast is off: the precision is that of the engine's own settings.
    """
    switches, before = _switches(), []
    for switch in switches:
        with suppress(RuntimeError):  # an old switch raises where the user has set the new ones apart
            before.append((switch, switch.read()))
    try:
        for switch, _ in before:
            switch.write(switch.exact)
        on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with on_device, torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch, value in before:  # in the same order: an old switch sets the new ones too
            switch.write(value)


@dataclass(frozen=True)
class _Switch:
    """A switch of PyTorch: the attribute `name` of `owner`, and its value for exact and deterministic fp32."""

    owner: Any
    name: str
    exact: Any

    def read(self) -> Any:
        return getattr(self.owner, self.name)

    def write(self, value: Any) -> None:
        setattr(self.owner, self.name, value)


class _MatmulPrecision(_Switch):
    """The switch of all matrix products, which has two functions."""

    def read(self) -> str:
        return torch.get_float32_matmul_precision()

    def write(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _switches() -> list[_Switch]:
    """The switches for exact and deterministic fp32, the old ones first.

    From PyTorch 2.9 on each kind of operation has its own. The old ones are set too: a model may read them, which
    raises where they and the new ones differ.
    """
    b = torch.backends
    found = [_Switch(b.cudnn, "benchmark", False), _Switch(b.cudnn, "deterministic", True)]
    found += [_Switch(b.cudnn, "allow_tf32", False), _MatmulPrecision(torch, "float32_matmul_precision", "highest")]
    if hasattr(b.cuda.matmul, "fp32_precision"):
        owners = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn)  # type: ignore[attr-defined]
        found += [_Switch(owner, "fp32_precision", "ieee") for owner in owners]
    return found


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 products. Without them, PyTorch emulates bf16 slowly.

    False on a CPU where PyTorch does not report its capabilities.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an out-of-memory error, on CUDA or CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _MEMORY_ERRORS)
