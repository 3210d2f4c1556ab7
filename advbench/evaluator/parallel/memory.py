"""A rough estimate of the memory that an evaluation takes on a CPU."""

from __future__ import annotations

import os
from contextlib import suppress

import torch
from torch import Tensor, nn

RUNTIME_BYTES = 2**29  # PyTorch and the attacks' own arrays
WEIGHT_COPIES = 6  # the model, its search copy, and the transformed filters of its convolutions


def processes_that_fit(net: nn.Module, x: Tensor) -> int:
    """How many processes fit into half of the machine's memory, at least one.

    Each makes gradient passes of batches like x (B, C, H, W), B >= 2.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    weights = sum(value.nbytes for value in (*net.parameters(), *net.buffers()))
    one, two = _kept(net, x[:1]), _kept(net, x[:2])
    return max(1, physical // 2 // (RUNTIME_BYTES + WEIGHT_COPIES * weights + (two - one) * len(x)))


def _kept(net: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass of x keeps for its gradient; 0 where the model has no gradient or refuses x."""
    sizes: list[int] = []

    def keep(value: Tensor) -> Tensor:
        sizes.append(value.nbytes)
        return value

    with suppress(Exception), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        net(x.clone().requires_grad_())
    return sum(sizes)
