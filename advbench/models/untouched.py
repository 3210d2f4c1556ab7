"""A context in which a network runs in eval mode, and after which it is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from advbench import rng


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Eval mode inside. Every module's mode, the buffers and the global random states are restored at the end."""
    modes = {
        module: module.training for module in net.modules() if hasattr(module, "training")
    }  # a frozen one has none
    named = {
        module: dict(module._buffers) for module in net.modules() if not isinstance(module, torch.jit.ScriptModule)
    }  # some networks put other tensors in their place
    buffers = [(buffer, buffer.detach().clone()) for buffer in net.buffers()]
    with rng.kept():
        try:
            net.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for module, tensors in named.items():
                module._buffers.clear()
                module._buffers.update(tensors)
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
