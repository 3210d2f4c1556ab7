"""The order in which an epoch visits the training images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from advbench.errors import UserError
from advbench.rng import bits, keys


def epoch_order(n: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of 0 to n-1, int64 (n,), that depends only on (n, seed, epoch): it is the same on every device."""
    key = keys(seed, "order", torch.arange(n, device=device), epoch)
    return bits(key, (1,))[:, 0].argsort(stable=True)


def batches(order: Tensor, batch_size: int, drop_last: bool = False) -> Iterator[Tensor]:
    """Yield `order` in pieces of `batch_size`, without a shorter last one if `drop_last`.

    Raises UserError for a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    end = len(order) - len(order) % batch_size if drop_last else len(order)
    for start in range(0, end, batch_size):
        yield order[start : start + batch_size]
