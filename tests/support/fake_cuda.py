"""CUDA without a card: fake tensors have a device, a shape and no values, so what needs a value on the host raises, and
so do operations on two devices. Counts of what would wait, of kernels and of the bytes that they move."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "bincount"}
COPIES = {"_to_copy", "copy_", "copy"}
# Operations without a kernel: new names for memory that is there, and memory without contents.
VIEWS = {
    "alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "lift_fresh",
    "new_empty", "new_empty_strided", "permute", "real", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unfold", "unsqueeze", "view", "view_as_real", "_reshape_alias", "_unsafe_view",
}  # fmt: skip


def works() -> bool:
    """Whether this PyTorch computes with fake tensors on CUDA where there is no driver. Release 2.6 does not."""
    with FakeTensorMode():
        each = torch.arange(2, device="cuda")
        try:
            return (each[:, None] + each).is_cuda
        except RuntimeError:
            return False


needed = pytest.mark.skipif(not works(), reason="this PyTorch wants a driver for fake tensors on CUDA")


class Watched(TorchDispatchMode):
    """Collects in `waits` what would wait for the device, or copy between it and the host.

    `kernels`: the operations on the device by name, each counted as one kernel (a sort and an FFT are more). `moved`:
    bytes of their operands and results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.kernels: Counter[str] = Counter()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        touched = [one for one in tree_leaves((args, kwargs or {}, out)) if isinstance(one, Tensor)]
        if name in WAITS:
            self.waits.append(name)
        if name in COPIES and {one.device.type for one in touched} == {"cpu", "cuda"}:
            self.waits.append(f"{name} between host and device")
        masks = args[1] if name in ("index", "index_put_") else ()
        if any(isinstance(one, Tensor) and one.dtype == torch.bool for one in masks or ()):
            self.waits.append(f"{name} by a mask")
        if name not in VIEWS and any(isinstance(one, Tensor) and one.device.type == "cuda" for one in tree_leaves(out)):
            self.kernels[name] += 1
            self.moved += sum(one.numel() * one.element_size() for one in touched if one.device.type == "cuda")
        return out


@contextlib.contextmanager
def zero_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """Inside, gradients are zeros, because backward passes need a card; the functions in the list say to what
    `backward` gives one."""
    given: list[Callable[[], None]] = []

    def grad(outputs: Any, inputs: Any, *rest: Any, **how: Any) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(one) for one in ([inputs] if isinstance(inputs, Tensor) else inputs))

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", grad)
        patch.setattr(Tensor, "backward", lambda self, *rest, **how: [give() for give in given])
        yield given
