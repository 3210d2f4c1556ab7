"""Averaged weights (EMA and SWA), which are deployed in place of the trained ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from advbench.models.base import Model
from advbench.recipe import Average


class Averaged:
    """A copy of f whose weights are averages of f's: updated after each step (EMA) or each epoch (SWA).

    EMA copies BatchNorm's running statistics; SWA averages them like weights. `recipe.Average` has the formulas.
    """

    def __init__(self, settings: Average, f: Model) -> None:
        self.settings = settings
        self.net = copy.deepcopy(f).requires_grad_(False)
        self.count = 0  # updates since the start

    def after_step(self, f: Model, progress: float) -> None:
        """Update the EMA from f; `progress` is the share of the training that is done, 0 to 1."""
        if self.settings.name == "ema":
            keep = min(self.settings.decay, (1 + self.count) / (10 + self.count))
            self._update(f, progress, keep, buffers=False)

    def after_epoch(self, f: Model, progress: float) -> None:
        """Update the SWA from f; `progress` as above."""
        if self.settings.name == "swa":
            self._update(f, progress, self.count / (self.count + 1), buffers=True)

    def _update(self, f: Model, progress: float, keep: float, *, buffers: bool) -> None:
        """Average f in, `keep` being the weight of the present average. Before the start, copy f."""
        if progress < self.settings.start:
            keep = 0.0
        else:
            self.count += 1
        with torch.no_grad():
            _average_(list(self.net.parameters()), list(f.parameters()), keep)
            _average_(list(self.net.buffers()), list(f.buffers()), keep if buffers else 0.0)


def _average_(averages: list[Tensor], values: list[Tensor], keep: float) -> None:
    """average <- keep x average + (1 - keep) x value, in place. Integers, and all with `keep` 0, are copied."""
    pairs = list(zip(averages, values, strict=True))
    if keep:
        floating = [(a, b) for a, b in pairs if a.is_floating_point()]
        if floating:
            torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], 1 - keep)
        pairs = [(a, b) for a, b in pairs if not a.is_floating_point()]
    for a, b in pairs:
        a.copy_(b)
