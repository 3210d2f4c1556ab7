"""torch.compile of a network's forward pass, and what happens where that cannot be had.

Two graphs are made of each mode: with gradients by the weights for updates, without for attacks, since a compiled
backward pass computes all gradients that its forward pass was traced for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from advbench.trainer.tools import Counter


class Compiled:
    """Calls of `net` by `backend` (inductor, aot_eager) from now on; `reason` says why not, once it has failed.

    Copies of the net, its state dict, and its `features` and `head` are as before.
    """

    def __init__(self, net: nn.Module, backend: str, counter: Counter) -> None:
        self.net = net
        self.backend = backend
        self.counter = counter
        self.reason = ""
        self.call = torch.compile(net._call_impl, backend=backend, dynamic=False)
        net._compiled_call_impl = self  # what nn.Module.compile sets, which could neither count nor fall back

    def __call__(self, *given: Any) -> Tensor:
        try:
            out: Tensor = self.call(*given)
        except TorchDynamoException as error:
            self.reason = " ".join(str(error).strip().partition("\n\n")[0].split())[:200]
            warnings.warn(f"training goes on without torch.compile: {self.reason}", stacklevel=2)
            self.net._compiled_call_impl = None
            return self.net(*given)  # type: ignore[no-any-return]
        self.counter.add(out)
        return out

    @property
    def told(self) -> str:
        """For the card: the backend, or why there is none."""
        return f"off ({self.reason})" if self.reason else self.backend


@contextmanager
def held(nets: Iterable[nn.Module]) -> Iterator[None]:
    """No weight of `nets` asks for a gradient."""
    weights = [weight for net in nets for weight in net.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
