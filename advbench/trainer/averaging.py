"""Averaged weights: EMA and SWA, kept beside the net and deployed in its place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from advbench.models.base import Model
from advbench.recipe import Average


class Averaged:
    """A copy of f that follows it. EMA moves at each step, SWA at each epoch (see `recipe.Average`).

    EMA copies BatchNorm's running statistics; SWA averages them as it does weights.
    """

    def __init__(self, settings: Average, f: Model) -> None:
        self.settings = settings
        self.net = copy.deepcopy(f).requires_grad_(False)
        self.count = 0  # updates since the start

    def after_step(self, f: Model, progress: float) -> None:
        """Follow f, `progress` (0 to 1) of the training being done."""
        if self.settings.name == "ema":
            keep = min(self.settings.decay, (1 + self.count) / (10 + self.count))
            self._follow(f, progress, keep, buffers=False)

    def after_epoch(self, f: Model, progress: float) -> None:
        if self.settings.name == "swa":
            self._follow(f, progress, self.count / (self.count + 1), buffers=True)

    def _follow(self, f: Model, progress: float, keep: float, *, buffers: bool) -> None:
        if progress < self.settings.start:
            keep = 0.0
        else:
            self.count += 1
        with torch.no_grad():
            self._move(list(self.net.parameters()), list(f.parameters()), keep)
            self._move(list(self.net.buffers()), list(f.buffers()), keep if buffers else 0.0)

    @staticmethod
    def _move(mine: list[Tensor], theirs: list[Tensor], keep: float) -> None:
        pairs = list(zip(mine, theirs, strict=True))
        if keep:
            floating = [(a, b) for a, b in pairs if a.is_floating_point()]
            if floating:
                torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], 1 - keep)
            pairs = [(a, b) for a, b in pairs if not a.is_floating_point()]
        for a, b in pairs:
            a.copy_(b)
