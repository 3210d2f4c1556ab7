"""What an evaluation holds in memory on a CPU, roughly."""

from __future__ import annotations

import os
from contextlib import suppress

import torch
from torch import Tensor, nn

RUNTIME = 2**29  # bytes of PyTorch and of the attacks' own arrays
COPIES = 6  # of the weights: the model, what searches in its place, and its convolutions' transformed filters


def processes_that_fit(net: nn.Module, x: Tensor) -> int:
    """How many processes, each with gradient passes of batches like x (B, C, H, W), B >= 2, have room in half of the
    machine's memory; one at least."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    weights = sum(value.nbytes for value in (*net.parameters(), *net.buffers()))
    one, two = _kept(net, x[:1]), _kept(net, x[:2])
    return max(1, physical // 2 // (RUNTIME + COPIES * weights + (two - one) * len(x)))


def _kept(net: nn.Module, x: Tensor) -> int:
    """Bytes that a pass with x keeps for its gradient; none where the model cannot have one."""
    sizes: list[int] = []

    def keep(value: Tensor) -> Tensor:
        sizes.append(value.nbytes)
        return value

    with suppress(RuntimeError), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        net(x.clone().requires_grad_())
    return sum(sizes)
