"""The order in which an epoch visits the training images."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.rng import bits, keys


def epoch_order(n: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of 0 to n-1, int64 (n,), that depends only on (n, seed, epoch): it is the same on every device."""
    key = keys(seed, "order", torch.arange(n, device=device), epoch)
    return bits(key, (1,))[:, 0].argsort(stable=True)
