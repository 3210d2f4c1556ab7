"""Models that may reject an input: of their K + 1 logits the last stands for "rejected" (`--abstain last`).

A clean image is right only if the model answers its class y. An attacked image falls only if the model answers neither
y nor the rejection, so for attacks the two are one class, whose logit is max(z_y, z_reject). With these K logits every
loss, margin, target and Jacobian is what it is for other models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.threat import Region

_LEVELS = 255  # of 8 bit
_SLACK = 1e-3  # of a level: rounding of float32 on the way to a whole number of levels


def accepted(logits: Tensor, y: Tensor) -> Tensor:
    """The logits (S, K) that attacks see of logits (S, K + 1) and labels y (S,): that of y is max(z_y, z_reject).

    Where the rejection's logit is NaN or infinite, so is that of y, which makes it a wrong answer. An exact tie of
    another class with the rejection is decided as one with y.
    """
    rejection = logits[:, -1:]
    own = torch.maximum(logits.gather(1, y[:, None]), rejection) + 0 * rejection  # 0 * inf is NaN
    return logits[:, :-1].scatter(1, y[:, None], own)


def never_rejecting(logits: Tensor) -> Tensor:
    """Logits (S, K + 1) of a model with logits (S, K) that rejects nothing: the last is below all others."""
    return torch.cat([logits, logits.detach().amin(1, keepdim=True) - 1], 1)


def in_8_bit(region: Region, z: Tensor) -> Tensor:
    """z (S, C, H, W) moved to whole 8-bit steps from x, for a model that rejects whatever is no 8-bit image.

    Each element goes to the nearest step, or in a row whose nearest steps leave the region to the next one towards x.
    """
    steps = (z - region.x) * _LEVELS
    nearest, towards = (
        (region.x + whole / _LEVELS).clamp(0, 1) for whole in (steps.round(), (steps + _SLACK * steps.sign()).trunc())
    )
    return torch.where(region.contains(nearest)[:, None, None, None], nearest, towards)
