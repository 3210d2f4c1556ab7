"""Loss terms that several methods share, a value for each sample, in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def kl(p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(p / T) || softmax(q / T)), summed over classes: (B,), for logits p and q (B, K)."""
    log_p = functional.log_softmax(p.float() / temperature, 1)
    log_q = functional.log_softmax(q.float() / temperature, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (B,) of logits (B, K), without label smoothing: what attacks use."""
    return functional.cross_entropy(logits.float(), y, reduction="none")
