"""RayS: Chen and Gu 2020, arXiv:2006.12792, algorithms 2 and 3. It sees labels alone, never logits or gradients.

The nearest adversarial example in Linf is sought at the corners of cubes around x: at clip(x + r d), d in {-1, 1}^n. d
starts as all ones. The image, flattened, is divided into 2^s blocks for s = 0, 1, ... until a block is one element, and
at last again and again into elements. Each block in turn has its signs flipped. If the new d misleads at the best
radius r so far (1 at first), a bisection finds its smallest misleading radius, else the old d is kept: most flips cost
one query.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench import rng
from advbench.engine.attack import Answer, Asks, Attack, Problem, State
from advbench.engine.tensors import rows
from advbench.errors import UserError

ENTRIES: dict[str, dict[str, Any]] = {
    "rays": {
        "make": "RayS",
        "set": {"name": "rays"},
        "summary": "RayS: nearest point in Linf by labels alone, 10000 queries (Chen and Gu 2020)",
        "proof": {"quick": {"n_queries": 40}, "settings": {"tolerance": 1e-6}},
    },
}


@dataclass
class RayState(State):
    """The bisection of `trial` is between `low` and `high`; the query lies in the middle. They are equal at the first
    query of a trial."""

    signs: Tensor  # (S, C, H, W): the best d so far
    trial: Tensor  # (S, C, H, W): the d that is tried
    radius: Tensor  # (S,) float64: of the best d, inf before the first adversarial example
    low: Tensor  # (S,) float64
    high: Tensor  # (S,) float64
    block: Tensor  # (S,): the number of the flipped block, see `_blocks`
    failures: Tensor  # (S,): flips of single elements since the last success


@dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """RayS.

    `n_queries`: the number of queries; an item ends sooner when no flip of one element brings it nearer. `tolerance`:
    the length in L2 of the interval at which a bisection ends.

    Restarts after the first begin with random signs. UserError if `n_queries` is below 1 or `tolerance` not above 0.
    """

    asks: ClassVar[Asks] = "logits"
    norms = ("linf",)
    minimum_norm: ClassVar[bool] = True
    main_count: ClassVar[str] = "n_queries"

    steps: int = field(init=False, default=1)
    loss: str = field(init=False, default="cw")
    n_queries: int = 10000
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.n_queries < 1 or not self.tolerance > 0:
            raise UserError(f"{self.name}: n_queries must be at least 1, and tolerance above 0")
        object.__setattr__(self, "steps", self.n_queries)
        super().__post_init__()

    def start(self, p: Problem) -> RayState:
        x, none = p.region.x, torch.zeros_like(p.y)
        signs = rows(p.first, torch.ones_like(x), rng.signs(p.key, tuple(x.shape[1:])))
        one = torch.ones_like(p.region.eps)
        trial = _flipped(signs, none)
        return RayState((x + trial).clamp(0, 1), none, signs, trial, one * torch.inf, one, one, none, none)

    def step(self, p: Problem, s: RayState, a: Answer) -> RayState:
        x = p.region.x
        numel = x[0].numel()
        first, at = s.low == s.high, (s.low + s.high) / 2
        high = torch.where(a.wrong, at, s.high)
        low = torch.where(a.wrong, torch.where(first, 0, s.low), at)
        ended = torch.where(first, ~a.wrong, high - low <= self.tolerance / math.sqrt(numel))

        nearer = ended & ~first & (high < s.radius)
        radius = torch.where(nearer, high, s.radius)
        signs = rows(nearer, s.trial, s.signs)
        elements = len(_blocks(numel, x.device)) - numel  # the number of the first block that is one element
        failures = torch.where(nearer, 0, s.failures + (ended & (s.block >= elements)))
        after = torch.where(s.block + 1 < elements + numel, s.block + 1, elements)
        block = torch.where(ended, after, s.block)
        trial = rows(ended, _flipped(signs, block), s.trial)
        reach = radius.clamp_max(1)
        low, high = torch.where(ended, reach, low), torch.where(ended, reach, high)
        query = (x + ((low + high) / 2).float().view(-1, 1, 1, 1) * trial).clamp(0, 1)
        return RayState(query, s.i + 1, signs, trial, radius, low, high, block, failures)

    def queries(self, classes: int) -> int:
        return self.updates(classes)  # the first one among them

    def done(self, s: RayState) -> Tensor:
        return (s.i >= self.n_queries) | (s.failures >= s.query[0].numel())


def _flipped(signs: Tensor, block: Tensor) -> Tensor:
    """`signs` (S, C, H, W) with those of one block (S,) of each row flipped."""
    numel = signs[0].numel()
    begin, end = _blocks(numel, signs.device)[block].T[:, :, None]
    at = torch.arange(numel, device=signs.device)
    inside = ((at >= begin) & (at < end)).view_as(signs)
    return torch.where(inside, -signs, signs)


@cache
def _blocks(numel: int, device: torch.device) -> Tensor:
    """The first element of each block and the one after its last, (blocks, 2) int64, in the order of their trial."""
    levels = math.ceil(math.log2(numel)) + 1
    sizes = [math.ceil(numel / 2**level) for level in range(levels)]
    blocks = [(begin, min(begin + size, numel)) for size in sizes for begin in range(0, numel, size)]
    return torch.tensor(blocks, device=device)
