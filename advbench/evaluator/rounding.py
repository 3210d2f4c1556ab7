"""Adversarial examples rounded to 8 bit, as image files hold them, and whether they still fool the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from advbench.engine.losses import wrong
from advbench.threat import Linf, Region

LEVELS = 255


def rounded(judge: Callable[[Tensor, Tensor], Tensor], region: Region, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The points z (n, C, H, W) in 8 bit, uint8, and the answers (n,) to those that stay adversarial, -1 for others.

    Each point is rounded to the nearest value (in Linf the nearest inside the ball), and where that does not do,
    towards the clean image, then away from it. The first that lies in the ball and that the model gets wrong for y (n,)
    stays; if none does, the nearest is returned. `judge` gives its logits (m, K) for m images and their labels.
    """
    answers = torch.full_like(y, -1)
    kept: Tensor | None = None
    for levels in candidates(region, z):
        kept = levels.clone() if kept is None else kept
        points = pixels(levels)
        rows = ((answers < 0) & region.contains(points)).nonzero()[:, 0]
        if len(rows):
            given = judge(points[rows], y[rows])
            fooled = wrong(given, y[rows])
            kept[rows[fooled]] = levels[rows[fooled]]
            answers[rows[fooled]] = given[fooled].argmax(1)
    assert kept is not None
    return kept.to(torch.uint8), answers


def candidates(region: Region, z: Tensor) -> Iterator[Tensor]:
    """Levels 0 to 255 (n, C, H, W), whole numbers in float32: nearest to z, towards the clean image, away from it."""
    exact = z.double() * LEVELS
    low, high = torch.zeros_like(z), torch.full_like(z, LEVELS)
    if isinstance(region, Linf):  # those inside the ball; where there is none, low is above high
        low, high = ((bound.double() * LEVELS).round().float() for bound in (region.low, region.high))
        low, high = low + (pixels(low) < region.low).float(), high - (pixels(high) > region.high).float()
    above = z > region.x
    for levels in (
        exact.round(),
        torch.where(above, exact.floor(), exact.ceil()),
        torch.where(above, exact.ceil(), exact.floor()),
    ):
        yield levels.float().clamp(0, LEVELS).maximum(low).minimum(high)


def pixels(levels: Tensor) -> Tensor:
    """Levels 0 to 255 as float32 in [0, 1], as `Dataset.pixels` makes them of the bytes of an image."""
    return levels.float() / torch.full((), float(LEVELS), device=levels.device)
