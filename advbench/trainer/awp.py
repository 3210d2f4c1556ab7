"""Adversarial weight perturbation: Wu, Xia and Wang 2020, arXiv:2004.05884.

The update of w uses the gradient of the loss at w + v, v = gamma ||w|| g / ||g|| for each tensor of at least 2
dimensions, g the gradient of the same loss at w. (The released code takes g from one step of plain SGD on a copy; the
step size cancels. It discards the copy's BatchNorm statistics, so here they stay frozen.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from advbench import ranks
from advbench.trainer.modes import frozen_statistics


@contextmanager
def perturbed(f: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Perturb the weights of f so that `loss()` (a scalar) grows; restore them, bit for bit, at the end."""
    weights = [weight for weight in f.parameters() if weight.dim() > 1 and weight.requires_grad]
    with frozen_statistics(f.modules()):
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    ranks.average_([g for g in gradients if g is not None])
    originals = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, g in zip(weights, gradients, strict=True):
            if g is not None:
                weight.add_(gamma * weight.norm() / (g.norm() + 1e-20) * g)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)
