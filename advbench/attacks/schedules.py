"""Schedules: values that depend on the number of steps only."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine(i: Tensor, steps: float, first: float, last: float) -> Tensor:
    """From `first` to `last` along half a cosine, for i (S,) from 0 to `steps`: (S,) float32."""
    return last + (first - last) * (1 + torch.cos(torch.pi * i.clamp_max(steps).float() / steps)) / 2
