"""Rounding to 8 bit: inside the ball, and nearest first, then towards the clean image and away from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advbench.evaluator.rounding import pixels, rounded
from advbench.threat import around


def never(z: Tensor, y: Tensor) -> Tensor:
    """Logits of class 0, for labels 0."""
    return torch.tensor([[1.0, 0.0]]).expand(len(z), 2)


def always(z: Tensor, y: Tensor) -> Tensor:
    return -never(z, y)


@pytest.mark.parametrize("scale", [16, 255])
@pytest.mark.parametrize("eps", [1 / 255, 4 / 255, 0.05, 0.1, 0.3])
def test_the_nearest_value_inside_the_ball(scale: int, eps: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, scale + 1, (50, 1, 8, 8), generator=draw).float() / scale
    region = around("linf", x, torch.full((50,), eps, dtype=torch.float64))
    z = region.project(x + eps * torch.randn(x.shape, generator=draw))
    levels, answers = rounded(always, region, z, torch.zeros(50, dtype=torch.int64))
    assert (answers == 1).all() and levels.dtype == torch.uint8
    every = pixels(torch.arange(256))
    inside = (every >= region.low[..., None]) & (every <= region.high[..., None])
    away = (every.double() - z[..., None].double()).abs().masked_fill(~inside, torch.inf)
    ours = (pixels(levels).double() - z.double()).abs()
    assert torch.allclose(ours, away.amin(-1), atol=1e-9)


def test_a_ball_without_8_bit_values_loses_the_point() -> None:
    x = torch.full((1, 1, 2, 2), 0.5)  # between 127 and 128
    region = around("linf", x, torch.tensor([1e-3], dtype=torch.float64))
    levels, answers = rounded(always, region, x, torch.zeros(1, dtype=torch.int64))
    assert answers.tolist() == [-1] and levels.shape == x.shape


@pytest.mark.parametrize(("level", "answer"), [(11, 1), (10, 1), (9, -1)])
def test_other_roundings_are_tried_where_the_nearest_does_not_do(level: int, answer: int) -> None:
    """The model errs at one level alone; z lies between the levels 10 and 11, nearer to 10, above the image."""

    def at_level(z: Tensor, y: Tensor) -> Tensor:
        hit = ((z * 255).round() == level).all((1, 2, 3))
        return torch.stack([torch.zeros(len(z)), torch.where(hit, 1.0, -1.0)], 1)

    x = torch.full((1, 1, 2, 2), 5 / 255)
    region = around("l2", x, torch.tensor([1.0], dtype=torch.float64))
    z = torch.full_like(x, 10.3 / 255)
    levels, answers = rounded(at_level, region, z, torch.zeros(1, dtype=torch.int64))
    assert answers.tolist() == [answer]
    assert (levels == (level if answer == 1 else 10)).all()


def test_a_point_that_no_longer_fools_the_model_is_told() -> None:
    x = torch.full((2, 1, 2, 2), 5 / 255)
    region = around("linf", x, torch.full((2,), 0.1, dtype=torch.float64))
    _, answers = rounded(never, region, x + 0.05, torch.zeros(2, dtype=torch.int64))
    assert answers.tolist() == [-1, -1]
