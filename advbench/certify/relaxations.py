"""Linear bounds of one activation or pooling window between bounds of its inputs.

Each shape here is (S, ...), with one row for each image, unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Lines:
    """`a x + b <= f(x) <= c x + d` for all low <= x <= high. `free`: where another a between `least` and 1 is as true,
    because f is a ReLU and both of its pieces occur."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    free: Tensor | None = None
    least: float = 0.0


@dataclass(frozen=True)
class Activation:
    """An increasing function, elementwise. `f`: itself. `lines`: between low and high. `piecewise`: a leaky ReLU."""

    f: Callable[[Tensor], Tensor]
    lines: Callable[[Tensor, Tensor], Lines]
    piecewise: bool = False
    units: int = 8  # of rounding, as in `graph`

    def open(self, low: Tensor, high: Tensor) -> Tensor:
        """Which inputs are worth tighter bounds."""
        return (low < 0) & (high > 0) if self.piecewise else high > low


def relu(slope: float = 0.0) -> Activation:
    """max(x, slope x) for 0 <= slope < 1 (Zhang et al. 2018, table 2, the lower line of CROWN-Ada).

    Above: the chord. Below: the identity where that leaves less area, else the line of the other piece.
    """

    def lines(low: Tensor, high: Tensor) -> Lines:
        free = (low < 0) & (high > 0)
        piece = torch.where(high <= 0, slope, 1.0).to(low)
        width = torch.where(free, high - low, 1.0)
        c = torch.where(free, (high - slope * low) / width, piece)
        d = torch.where(free, (slope - 1) * low * high / width, 0.0)
        a = torch.where(free & (high <= -low), slope, piece)
        return Lines(a, torch.zeros_like(a), c, d, free, slope)

    return Activation(lambda x: torch.maximum(x, slope * x), lines, piecewise=True)


def sigmoidal(f: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]) -> Activation:
    """An S-shaped function: its derivative rises up to 0 and falls from there, so it is least at an end.

    Both lines have that least slope and start at the ends (Singh et al. 2018, section 4).
    """

    def lines(low: Tensor, high: Tensor) -> Lines:
        slope = torch.minimum(derivative(low), derivative(high))
        return Lines(slope, f(low) - slope * low, slope, f(high) - slope * high)

    return Activation(f, lines)


def softplus() -> Activation:
    """log(1 + exp x), which is convex: the tangent in the middle below, the chord above."""

    def lines(low: Tensor, high: Tensor) -> Lines:
        middle = (low + high) / 2
        a, width = middle.sigmoid(), high - low
        c = torch.where(width > 1e-6, (F.softplus(high) - F.softplus(low)) / width.clamp_min(1e-6), high.sigmoid())
        d = torch.maximum(F.softplus(low) - c * low, F.softplus(high) - c * high)
        return Lines(a, F.softplus(middle) - a * middle, c, d)

    return Activation(F.softplus, lines)


SIGMOID = sigmoidal(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x))
TANH = sigmoidal(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2)


@dataclass(frozen=True)
class Picks:
    """The bounds of windows by one input each: x[below] <= max <= slope x[above] + intercept. (S, C, L), and the inputs
    are places in the H x W of a channel."""

    below: Tensor
    above: Tensor
    slope: Tensor
    intercept: Tensor


@dataclass(frozen=True)
class MaxPool:
    """The maximum of windows of maps (S, C, H, W), without ceil_mode."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    units: int = 2

    def f(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation)

    def windows(self, x: Tensor, outside: float) -> Tensor:
        """The inputs (S, C, window, L) of each window, `outside` for those of the padding."""
        count, channels = x.shape[:2]
        (top, left), outside = self.padding, float(outside)
        padded = F.pad(x, (left, left, top, top), value=outside)
        flat = padded.reshape(count * channels, 1, *padded.shape[2:])
        return F.unfold(flat, self.kernel, self.dilation, 0, self.stride).reshape(
            count, channels, self.kernel[0] * self.kernel[1], -1
        )

    def places(self, x: Tensor) -> Tensor:
        """Where the inputs (1, 1, window, L) of each window lie in a channel; -1 in the padding."""
        height, width = x.shape[2:]
        grid = torch.arange(height * width, device=x.device, dtype=x.dtype).view(1, 1, height, width)
        return self.windows(grid, -1).long()

    def lines(self, low: Tensor, high: Tensor) -> Picks:
        """Below, the input of the largest lower bound. Above, with i the input of the largest upper bound and M the
        next one, max(x_i, M), which is convex in x_i: its chord."""
        lows, highs = (self.windows(bound, -torch.inf) for bound in (low, high))
        below, above = lows.argmax(2, keepdim=True), highs.argmax(2, keepdim=True)
        least, most = lows.gather(2, above), highs.gather(2, above)
        m = highs.scatter(2, above, -torch.inf).amax(2, keepdim=True)
        chord = m > least
        slope = torch.where(chord, (most - m) / torch.where(chord, most - least, 1.0), 1.0)
        intercept = torch.where(chord, m - slope * least, 0.0)
        places = self.places(low).expand_as(lows)
        return Picks(
            *(part.squeeze(2) for part in (places.gather(2, below), places.gather(2, above), slope, intercept))
        )

    def open(self, low: Tensor, high: Tensor) -> Tensor:
        """Which inputs are worth tighter bounds: those of windows of which any input may be the largest."""
        lows, highs = (self.windows(bound, -torch.inf) for bound in (low, high))
        best = lows.amax(2, keepdim=True)
        rivals = (highs > best) | (lows == best)
        rivals &= rivals.sum(2, keepdim=True) > 1
        places = self.places(low).expand_as(lows).clamp_min(0).flatten(2)
        found = torch.zeros_like(low).flatten(2).scatter_add_(2, places, rivals.flatten(2).to(low))
        return found.view_as(low) > 0
