"""Square Attack: random search with square changes, Andriushchenko et al. 2020, arXiv:1912.00049.

The attack uses logits only. A change is kept if the margin max_{k != y} z_k - z_y rises.

Linf (algorithm 2 there): a change sets a square to the border of the ball, with one sign per channel. The start is
vertical stripes. L2 (algorithm 3): a change moves the mass of two windows into the first one, in the form of two
opposite bumps. The start is a grid of 5 x 5 such forms. L1: as L2, with sharper bumps and the projection of Croce and
Hein 2021 (2103.01208, sec. 5). The side of a square is sqrt(p) of the image's, and p is halved at fixed numbers of
queries.

Early stopping is ours. With each doubling of the queries the margin rises by some percent of the clean one, seldom by
more, so an item that is too far from failure to get there with the queries that are left is given up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from math import inf, log2
from typing import Any, ClassVar

import torch
from torch import Tensor

from advbench import rng
from advbench.attacks.aimed import Aimed
from advbench.engine.attack import Answer, Asks, Problem, State
from advbench.engine.losses import LOSSES
from advbench.engine.tensors import rows
from advbench.errors import UserError
from advbench.recipe.fields import Count
from advbench.threat import Linf

ENTRIES: dict[str, dict[str, Any]] = {
    "square": {
        "make": "Square",
        "set": {"name": "square"},
        "summary": "Square Attack: random search by logits, 5000 queries (Andriushchenko et al. 2020)",
        "proof": {
            "quick": {"n_queries": 25},
            "settings": {"n_queries": 1500},
            "needs": {"l2 free": 1.4, "l2 bound": 1.5, "l1": 2},
        },
    },
}
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # out of 10,000 queries
_FIRST_LOOK = 0.1  # of the queries
_TINY = 1e-12


@dataclass
class SquareState(State):
    key: Tensor  # (S,), of the random numbers of the changes
    best: Tensor  # (S, C, H, W)
    best_value: Tensor  # (S,)
    given_up: Tensor  # (S,) bool


@dataclass(frozen=True, kw_only=True)
class Square(Aimed):
    """Square Attack.

    `n_queries`: number of changes tried after the start. `p_init`: the first square's share of the image's area.
    `rescale_schedule`: scale the halvings of p from 10,000 queries to `n_queries`; AutoAttack does not.
    `early_stop`: after a tenth of the queries and at each doubling an item is given up whose margin is below
    -`early_stop` times the clean margin times the doublings that are left; with 0 none is.

    UserError if `p_init` is not in (0, 1], if `early_stop` is negative, or if it is used with another loss than cw.
    """

    asks: ClassVar[Asks] = "logits"
    version: ClassVar[int] = 2
    main_count: ClassVar[str] = "n_queries"
    norms = ("linf", "l2", "l1")

    steps: int = field(init=False, default=1)
    loss: str = "cw"
    n_queries: Count = 5000
    p_init: float = 0.8
    rescale_schedule: bool = False
    early_stop: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self.n_queries)
        super().__post_init__()
        if not 0 < self.p_init <= 1:
            raise UserError(f"{self.name}: p_init is {self.p_init:g}, but must lie in (0, 1]")
        if not 0 <= self.early_stop < inf:
            raise UserError(f"{self.name}: early_stop is {self.early_stop:g}, but must be 0 or a positive number")
        if self.early_stop and self.loss != "cw":
            raise UserError(f"{self.name}: early_stop compares margins, so it needs loss=cw, not {self.loss}")

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        if not self.early_stop:  # records without it stay as they are
            del settings["early_stop"]
        return settings

    def start(self, p: Problem) -> SquareState:
        region, x = p.region, p.region.x
        channels, _, width = x.shape[1:]
        if isinstance(region, Linf):
            query = region.project(x + region.e * rng.signs(p.key, (channels, 1, width)))
        else:
            tiles = _tiles(p.key, x, region.norm)
            query = region.project(x + (region.e * _unit(tiles) if region.norm == "l2" else tiles))
        low = torch.full(p.y.shape, -torch.inf, device=x.device)
        none = torch.zeros_like(p.y, dtype=torch.bool)
        return SquareState(query, torch.zeros_like(p.y), rng.fold(p.key, 3), query, low, none)

    def step(self, p: Problem, s: SquareState, a: Answer) -> SquareState:
        better = a.value > s.best_value
        best = rows(better, s.query, s.best)
        propose = self._set_square if isinstance(p.region, Linf) else self._move_mass
        query = propose(p, s.i, s.key, best)
        value = torch.where(better, a.value, s.best_value)
        given_up = s.given_up | self._is_hopeless(p, s.i, value) if self.early_stop else s.given_up
        return SquareState(query, s.i + 1, s.key, best, value, given_up)

    def done(self, s: SquareState) -> Tensor:
        return super().done(s) | s.given_up if self.early_stop else super().done(s)

    @property
    def few_go_on(self) -> bool:
        return self.early_stop > 0

    def _is_hopeless(self, p: Problem, i: Tensor, value: Tensor) -> Tensor:
        """(S,) bool: items that are looked at now, after `i` queries (S,), and too far from failure at `value` (S,)."""
        left = _doublings_left(self.n_queries, i.device)[i.clamp_max(self.n_queries)]
        clean = LOSSES["cw"](p.reference, p.y, p.target)  # 0 or more in one pass of some random models
        return (clean < 0) & (value < self.early_stop * left * clean)

    def _side(self, i: Tensor, height: int, width: int, odd: bool) -> Tensor:
        """The side (S,) of the square tried after i + 1 answers; see `_sides` for `odd`."""
        table = _sides(self.n_queries, self.p_init, self.rescale_schedule, height, width, odd, i.device)
        return table[i.clamp_max(self.n_queries - 1)]

    def _set_square(self, p: Problem, i: Tensor, key: Tensor, best: Tensor) -> Tensor:
        channels, height, width = best.shape[1:]
        drawn = rng.draws(key, i, 2 + channels)
        window, _, _ = _window(drawn[:, :2], self._side(i, height, width, odd=False), height, width)
        up = (drawn[:, 2:] < 0).float()[:, :, None, None]
        # The paper adds 2 eps and projects, which gives the border from any point of the ball.
        border = torch.lerp(p.region.low, p.region.high, up)
        return torch.lerp(best, border, window)

    def _move_mass(self, p: Problem, i: Tensor, key: Tensor, best: Tensor) -> Tensor:
        region, norm = p.region, p.region.norm
        channels, height, width = best.shape[1:]
        side = self._side(i, height, width, odd=True)
        delta = best - region.x
        drawn = rng.draws(key, i, 5 + channels)
        here, top, left = _window(drawn[:, :2], side, height, width)
        there, _, _ = _window(drawn[:, 2:4], side, height, width)

        form = _form_at(norm, side, drawn[:, 4] < 0, top, left, height, width)
        new = (1 + 2 * (drawn[:, 5:] >> 63)).float()[:, :, None, None] * form
        new = new + delta * here / (_mass(delta * here, norm) + _TINY)
        both = _mass(delta * torch.maximum(here, there), norm)
        whole = region.size(delta).view(-1, 1, 1, 1)
        if norm == "l2":
            amount = ((region.e**2 - whole**2).clamp_min(0) / channels + both**2).sqrt()
        else:
            amount = (region.e - whole).clamp_min(0) + both * channels
        new = new * here / (_mass(new * here, norm) + _TINY) * amount
        delta = delta * (1 - torch.maximum(here, there)) + new
        if norm == "l2":
            delta = region.e * _unit(delta)
        return region.project(region.x + delta)


def _mass(d: Tensor, norm: str) -> Tensor:
    """The norm of each channel: (S, C, 1, 1)."""
    return d.abs().sum((2, 3), keepdim=True) if norm == "l1" else (d**2).sum((2, 3), keepdim=True).sqrt()


def _unit(d: Tensor) -> Tensor:
    return d / ((d**2).sum((1, 2, 3), keepdim=True).sqrt() + _TINY)


@cache
def _sides(
    queries: int, p_init: float, rescale: bool, height: int, width: int, odd: bool, device: torch.device
) -> Tensor:
    """(queries,) int64: the side at each query. `odd` (L2 and L1): odd and at least 3, so that a bump has a middle."""
    sides = []
    for i in range(queries):
        at = int(i / queries * 10000) if rescale else i
        p = p_init / 2 ** sum(at > bound for bound in _HALVED_AT)
        side = max(round((p * height * width) ** 0.5), 3 if odd else 1)
        if odd and side % 2 == 0:
            side += 1
        sides.append(min(side, height, width))
    return torch.tensor(sides, device=device)


@cache
def _doublings_left(queries: int, device: torch.device) -> Tensor:
    """(queries + 1,) float32: where items are looked at, how many doublings of the queries are left; elsewhere inf."""
    left, at = torch.full((queries + 1,), inf), max(_FIRST_LOOK * queries, 1)
    while at < queries:
        left[int(at)] = log2(queries / at)
        at *= 2
    return left.to(device)


def _window(hashes: Tensor, side: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random windows of `side` (S,), drawn from random bits `hashes` (S, 2).

    Returns a mask (S, 1, H, W) of 1 inside and 0 outside, the top rows (S,) and the left columns (S,).
    """
    size, along = _axes(height, width, side.device)
    start = rng.scaled(hashes, size - side[:, None] + 1)
    place = along - start[:, :, None]  # both axes at once: on small images the number of operations is the cost
    inside = ((place >= 0) & (place < side[:, None, None])).float()
    mask = inside[:, 0, :height, None] * inside[:, 1, None, :width]
    return mask[:, None], start[:, 0], start[:, 1]


@cache
def _axes(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The height and width, (2,), and the positions along the longer axis."""
    return torch.tensor([height, width], device=device), torch.arange(max(height, width), device=device)


def _form_at(norm: str, side: Tensor, flip: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """(S, 1, H, W): forms of `side` (S,) at (top, left), transposed where `flip` (S,). Undefined outside the window."""
    forms = _forms(norm, min(height, width), side.device)
    row = (torch.arange(height, device=side.device) - top[:, None]).clamp(0, forms.shape[1] - 1)
    column = (torch.arange(width, device=side.device) - left[:, None]).clamp(0, forms.shape[1] - 1)
    row, column = row[:, :, None], column[:, None, :]
    flip = flip[:, None, None]
    return forms[side[:, None, None], torch.where(flip, column, row), torch.where(flip, row, column)][:, None]


def _tiles(key: Tensor, x: Tensor, norm: str) -> Tensor:
    """The first perturbation (S, C, H, W) for L2 and L1, not yet scaled: a grid of forms, transposed and signed at
    random."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    row = torch.arange(height, device=x.device) - (height - down * side) // 2
    column = torch.arange(width, device=x.device) - (width - across * side) // 2
    inside = ((row >= 0) & (row < down * side))[:, None] & ((column >= 0) & (column < across * side))[None]
    row, column = row.clamp(0, down * side - 1), column.clamp(0, across * side - 1)
    tile = (row // side)[:, None] * across + (column // side)[None]

    form = _forms(norm, min(height, width), x.device)[side]
    upright = form[(row % side)[:, None], (column % side)[None]]
    transposed = form[(column % side)[None], (row % side)[:, None]]
    flip = rng.signs(rng.fold(key, 1), (down * across,))[:, tile] > 0
    sign = rng.signs(rng.fold(key, 2), (channels, down * across))[:, :, tile]
    return sign * torch.where(flip, transposed, upright)[:, None] * inside


@cache
def _forms(norm: str, largest: int, device: torch.device) -> Tensor:
    """(largest + 1, largest, largest): for each side, a form in the upper left corner.

    A form is a positive bump above a negative one, with norm 1.
    """
    table = torch.zeros(largest + 1, largest, largest)
    for side in range(1, largest + 1):
        upper, lower = _bump(side // 2, side, norm), _bump(side - side // 2, side, norm)
        form = torch.cat([upper, -lower])
        table[side, :side, :side] = form / (form.abs().sum() if norm == "l1" else form.norm())
    return table.to(device)


def _bump(height: int, width: int, norm: str) -> Tensor:
    """A bump (height, width) of norm 1: nested rectangles around the middle, the k-th adds 1 / k^2 (L1: 1 / k^4)."""
    if height == 0:
        return torch.zeros(0, width)
    down, across = height // 2, width // 2
    ring = torch.maximum((torch.arange(height) - down).abs()[:, None], (torch.arange(width) - across).abs()[None])
    count = max(down, across) + 1
    terms = torch.arange(1, count + 1, dtype=torch.float32) ** (-4 if norm == "l1" else -2)
    bump = terms.flip(0).cumsum(0).flip(0)[ring]
    return bump / (bump.sum() if norm == "l1" else bump.norm())
