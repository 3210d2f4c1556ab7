"""Bounds of every node of a graph, and linear bounds backward through it (CROWN, Zhang et al. 2018, arXiv:1811.00866).

A lower bound of A z, z the value of a node, is followed to the images: where z = W x + b it is A W x + A b; where
z = f(x) and a x + b <= f(x) <= c x + d, positive parts of A take a x + b and negative ones c x + d. Each node moreover
takes off |A| times what rounding can change there, so that the bounds hold for the float32 network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advbench.certify.graph import UNIT, Graph
from advbench.certify.relaxations import Activation, Lines, MaxPool, Picks
from advbench.threat import around

ROWS = 2**21  # numbers in one tensor of rows, for which caches and memory suffice
INPUT_UNITS = 1e-10  # of the rounding of sums over an image, in float64
TINY = 1e-30  # what underflow may change
LARGEST = 1e38  # of sizes: float32 may overflow beyond, and nothing is proved there


@dataclass(frozen=True)
class Ball:
    """Images x (S, C, H, W), the least and largest value of each element, and the radius (S,) of the ball of `norm` in
    that box, None where the box is the ball. All in float64."""

    x: Tensor
    low: Tensor
    high: Tensor
    norm: str
    radius: Tensor | None

    @classmethod
    def around(cls, x: Tensor, eps: float, norm: str) -> Ball:
        """The points that `threat.Region.contains` for x in float32, with the tolerance that hits have."""
        sizes = torch.full((len(x),), eps, dtype=torch.float64, device=x.device)
        region = around(norm, x, sizes)
        x, low, high = x.double(), region.low.double(), region.high.double()
        if norm == "linf":
            return cls(x, low, high, norm, None)
        radius = (sizes * (1 + 1e-5) + 1e-6) * (1 + 1e-12)
        side = radius.view(-1, 1, 1, 1)
        return cls(x, torch.maximum(low, x - side), torch.minimum(high, x + side), norm, radius)

    def least(self, rows: Tensor, image: Tensor) -> Tensor:
        """The least (P,) of <row, x'> over the points x' of the ball of its image (P,)."""
        flat, low, high = rows.flatten(1), self.low[image].flatten(1), self.high[image].flatten(1)
        found = (flat.clamp_min(0) * low + flat.clamp_max(0) * high).sum(1)
        if self.radius is None:
            return found
        dual = torch.linalg.vector_norm(flat, ord=2 if self.norm == "l2" else torch.inf, dim=1)
        return torch.maximum(found, (flat * self.x[image].flatten(1)).sum(1) - self.radius[image] * dual)


@dataclass
class Bounds:
    """Of each node: `low` and `high` (S, ...), `rounding` (S, ...), and how its activation is bounded."""

    graph: Graph
    ball: Ball
    low: list[Tensor] = field(default_factory=list)
    high: list[Tensor] = field(default_factory=list)
    rounding: list[Tensor] = field(default_factory=list)
    lines: list[Lines | Picks | None] = field(default_factory=list)

    def pick(self, image: Tensor) -> Bounds:
        """Those of the images (D,), which may repeat."""
        ball = self.ball
        radius = None if ball.radius is None else ball.radius[image]
        return Bounds(
            self.graph,
            Ball(ball.x[image], ball.low[image], ball.high[image], ball.norm, radius),
            [part[image] for part in self.low],
            [part[image] for part in self.high],
            [part[image] for part in self.rounding],
            [None if part is None else _picked(part, image) for part in self.lines],
        )

    def relax(self, number: int) -> None:
        """Make the lines of a node from the bounds of its input."""
        node = self.graph.nodes[number]
        if isinstance(node.op, Activation | MaxPool):
            source = node.inputs[0]
            self.lines[number] = node.op.lines(self.low[source], self.high[source])


# Lower bounds (P,) of <row, z> for rows (P, ...), z the value of a node for an image (P,).
Bound = Callable[[Bounds, int, Tensor, Tensor], Tensor]


def bounds(
    graph: Graph,
    ball: Ball,
    by: Bound | None = None,
    known: Bounds | None = None,
    *,
    deadline: float = float("inf"),
) -> Bounds:
    """The bounds of every node: by intervals, and `by` another function where an activation needs better ones.

    `by`: `backward`, or what has its arguments. `known`: bounds of the same ball by `backward`, of which the better
    ones are kept. After `deadline`, in time.monotonic, intervals alone.
    """
    found = Bounds(graph, ball)
    bent: set[int] = set()  # nodes behind an activation; before, intervals are as good in linf
    readers: dict[int, list[Any]] = {}
    for node in graph.nodes:
        for number in node.inputs:
            readers.setdefault(number, []).append(node.op)
    for number, node in enumerate(graph.nodes):
        op = node.op
        if op is None:
            low, high = ball.low, ball.high
            rounding = INPUT_UNITS * torch.maximum(low.abs(), high.abs())
        else:
            lows, highs = ([part[one] for one in node.inputs] for part in (found.low, found.high))
            sizes = [torch.maximum(low.abs(), high.abs()) for low, high in zip(lows, highs, strict=True)]
            if isinstance(op, Activation | MaxPool):
                low, high = op.f(lows[0]), op.f(highs[0])
                size = torch.maximum(low.abs(), high.abs())
                if isinstance(op, Activation):
                    size = size + sizes[0]
            else:
                middle = op.f(*((low + high) / 2 for low, high in zip(lows, highs, strict=True)))
                radii = [(high - low) / 2 for low, high in zip(lows, highs, strict=True)]
                zero = op.magnitude(*(torch.zeros_like(radius) for radius in radii))
                radius = op.magnitude(*radii) - zero
                low, high, size = middle - radius, middle + radius, op.magnitude(*sizes)
            rounding = torch.where(size.abs() < LARGEST, op.units * UNIT * size.abs() + TINY, torch.inf)
            low, high = low - rounding, high + rounding
        if known is not None:
            low, high = torch.maximum(low, known.low[number]), torch.minimum(high, known.high[number])
        found.low.append(low)
        found.high.append(high)
        found.rounding.append(rounding)
        found.lines.append(None)
        found.relax(number)
        if isinstance(op, Activation | MaxPool) or bent & {*node.inputs}:
            bent.add(number)
        if by is not None and (number in bent or (ball.radius is not None and known is None)):
            wanted = [reader.open(low, high) for reader in readers.get(number, ()) if _wants(reader, op)]
            if wanted:
                _tighten(found, number, torch.stack(wanted).any(0), by, deadline)
    return found


def backward(
    found: Bounds,
    start: int,
    rows: Tensor,
    image: Tensor,
    *,
    slopes: Mapping[int, Tensor] | None = None,
    multipliers: Mapping[int, Tensor] | None = None,
    see: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Lower bounds (P,) of <row, z> for rows (P, ...), z the value of node `start` for its image (P,).

    `slopes`: by node of a ReLU, other slopes (P, ...) of the lines below it, between `Lines.least` and 1.
    `multipliers`: by node of a ReLU, numbers (P, ...) that are taken off the row of its input (see `alpha`).
    `see(node, rows)` is told the rows that reach each activation.
    """
    pending: dict[int, Tensor] = {start: rows}
    total = rows.new_zeros(len(rows))
    for number in range(start, -1, -1):
        at = pending.pop(number, None)
        if at is None:
            continue
        node, lines = found.graph.nodes[number], found.lines[number]
        total = total - (at.detach().abs() * found.rounding[number][image]).flatten(1).sum(1)
        if node.op is None:
            return total + found.ball.least(at, image)
        if isinstance(lines, Lines):
            if see is not None:
                see(number, at)
            positive, negative = at.clamp_min(0), at.clamp_max(0)
            a = lines.a[image]
            if slopes is not None and number in slopes and lines.free is not None:
                a = torch.where(lines.free[image], slopes[number], a)
            total = total + (positive * lines.b[image] + negative * lines.d[image]).flatten(1).sum(1)
            pulled = [positive * a + negative * lines.c[image]]
            if multipliers is not None and number in multipliers:
                pulled[0] = pulled[0] - multipliers[number]
        elif isinstance(lines, Picks):
            shape = found.graph.nodes[node.inputs[0]].shape
            flat = at.flatten(2)
            positive, negative = flat.clamp_min(0), flat.clamp_max(0)
            total = total + (negative * lines.intercept[image]).flatten(1).sum(1)
            empty = at.new_zeros(len(at), shape[0], shape[1] * shape[2])
            maps = empty.scatter_add(2, lines.below[image], positive)
            maps = maps.scatter_add(2, lines.above[image], negative * lines.slope[image])
            pulled = [maps.view(len(at), *shape)]
        else:
            inputs = [found.graph.nodes[one].shape for one in node.inputs]
            pulled = list(node.op.pull(at, inputs))  # type: ignore[union-attr]
            zero = node.op.f(*(at.new_zeros(1, *shape) for shape in inputs))
            total = total + (at * zero).flatten(1).sum(1)
        for one, part in zip(node.inputs, pulled, strict=True):
            pending[one] = pending[one] + part if one in pending else part
    raise AssertionError("the images are node 0")


def parts(graph: Graph, count: int) -> int:
    """In how many parts `count` rows are followed, so that memory suffices."""
    largest = max(node.shape.numel() for node in graph.nodes)
    return -(-count * largest // ROWS)


def _tighten(
    found: Bounds,
    number: int,
    wanted: Tensor,
    by: Bound,
    deadline: float,
) -> None:
    """Better bounds of the values `wanted` (S, ...) of a node, where they are better."""
    which = wanted.flatten(1).nonzero()
    low, high = found.low[number].flatten(1).clone(), found.high[number].flatten(1).clone()
    for some in which.tensor_split(max(1, 2 * parts(found.graph, len(which)))):
        if len(some) == 0 or time.monotonic() > deadline:
            break
        image, unit = some.unbind(1)
        rows = torch.zeros(len(some), low.shape[1], dtype=low.dtype, device=low.device)
        rows[torch.arange(len(some), device=low.device), unit] = 1
        rows = torch.cat([rows, -rows]).view(-1, *found.graph.nodes[number].shape)
        below, above = by(found, number, rows, image.repeat(2)).chunk(2)
        low[image, unit] = torch.maximum(low[image, unit], below)
        high[image, unit] = torch.minimum(high[image, unit], -above)
    found.low[number], found.high[number] = low.view_as(wanted), high.view_as(wanted)


def _wants(reader: Any, op: Any) -> bool:
    """Whether CROWN may give a reader better bounds than intervals: pooled activations have those of the activation."""
    return isinstance(reader, Activation) or (isinstance(reader, MaxPool) and not isinstance(op, Activation))


def _picked(part: Lines | Picks, image: Tensor) -> Lines | Picks:
    taken: dict[str, Any] = {
        name: value[image] if isinstance(value, Tensor) else value for name, value in vars(part).items()
    }
    return type(part)(**taken)
