"""Loss terms that several methods share: one float32 value for each sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from advbench.errors import UserError
from advbench.recipe import Recipe


def kl(p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(p / T) || softmax(q / T)) (B,), summed over classes, for logits p and q (B, K)."""
    log_p = functional.log_softmax(p.float() / temperature, 1)
    log_q = functional.log_softmax(q.float() / temperature, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (B,) of logits (B, K), without label smoothing, as attacks use it."""
    return functional.cross_entropy(logits.float(), y, reduction="none")


def kl_objective(f: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """The objective of TRADES' attack: KL(f(x) || f(z)) (B,) for inputs z, with f(x) constant."""
    with torch.no_grad():
        clean = f(x)
    return lambda z: kl(clean, f(z))


def check_kl_start(recipe: Recipe) -> None:
    """Raise UserError if the attack by `kl_objective` would start at the image itself, where its gradient is 0."""
    if recipe.inner.init == "none":
        raise UserError("the KL divergence is flat at the image itself: set inner.init to uniform or gauss")


def js(p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """Jensen-Shannon divergence (B,): (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, of softmax(logits / T)."""
    log_p = functional.log_softmax(p.float() / temperature, 1)
    log_q = functional.log_softmax(q.float() / temperature, 1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2


def boosted_margin(logits: Tensor, y: Tensor) -> Tensor:
    """MART's margin term -log(1.0001 - max_{k != y} p_k) (B,), for logits (B, K)."""
    p = functional.softmax(logits.float(), 1)
    return -(1.0001 - p.scatter(1, y[:, None], 0.0).amax(1)).log()


def weighted_kl(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    """MART's KL(clean || adversarial) (1.0000001 - p_y) (B,), p the clean softmax, for logits (B, K)."""
    weight = 1.0000001 - functional.softmax(clean.float(), 1).gather(1, y[:, None])[:, 0]
    return kl(clean, adversarial) * weight
