"""torch.compile of a network's forward pass, with a fallback where it fails.

For each mode there are two graphs: updates need gradients of the weights, attacks do not, and a compiled backward pass
computes every gradient that its forward pass was traced for.
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
    """Compiles the calls of `net` with `backend` (inductor, aot_eager), until that fails: `reason` then says why.

    Copies of the net, its state dict, and its `features` and `head` are not affected.
    """

    def __init__(self, net: nn.Module, backend: str, counter: Counter) -> None:
        self.net = net
        self.backend = backend
        self.counter = counter
        self.reason = ""
        self.call = torch.compile(net._call_impl, backend=backend, dynamic=False)
        net._compiled_call_impl = self  # as nn.Module.compile does, which can neither count nor fall back

    def __call__(self, *args: Any) -> Tensor:
        try:
            out: Tensor = self.call(*args)
        except TorchDynamoException as error:
            self.reason = " ".join(str(error).strip().partition("\n\n")[0].split())[:200]
            warnings.warn(f"training continues without torch.compile: {self.reason}", stacklevel=2)
            self.net._compiled_call_impl = None
            return self.net(*args)  # type: ignore[no-any-return]
        self.counter.add(out)
        return out

    @property
    def status(self) -> str:
        """The backend, or "off" with the reason: an entry of the run card."""
        return f"off ({self.reason})" if self.reason else self.backend


@contextmanager
def without_weight_gradients(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, no weight of `nets` requires a gradient."""
    weights = [weight for net in nets for weight in net.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
