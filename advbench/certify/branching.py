"""Branch and bound over the signs of ReLU inputs (beta-CROWN, Wang et al. 2021, arXiv:2103.06624).

A domain is a logit difference and some inputs of ReLUs whose signs are assumed. It is proved where its lower bound is
above 0; otherwise one more input is taken, once as >= 0 and once as <= 0, which together are all that can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advbench.certify.alpha import Climb, climbed
from advbench.certify.bounds import ROWS, Bounds, backward
from advbench.certify.relaxations import Lines

AT_ONCE = 32  # domains
MOST = 20_000  # open domains
NUMBERS = 2**28  # of open domains, for which memory suffices
STEPS, RATE = 4, 0.1  # of the climb in a domain, which begins where that of the whole one ended


@dataclass
class _Domains:
    """`rows` (D, K): the logit differences. `signs`: by node of a ReLU, of its inputs (D, ...). `climb`: to their
    bounds; halves of a domain climb on from there."""

    rows: Tensor
    signs: dict[int, Tensor]
    climb: Climb

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Tensor) -> _Domains:
        signs, slopes, betas = ({n: part[which] for n, part in each.items()} for each in self._by_node)
        return _Domains(self.rows[which], signs, Climb(self.climb.bound[which], slopes, betas))

    def with_more(self, other: _Domains) -> _Domains:
        signs, slopes, betas = (
            {n: torch.cat([part, more[n]]) for n, part in each.items()}
            for each, more in zip(self._by_node, other._by_node, strict=True)
        )
        bound = torch.cat([self.climb.bound, other.climb.bound])
        return _Domains(torch.cat([self.rows, other.rows]), signs, Climb(bound, slopes, betas))

    @property
    def _by_node(self) -> tuple[dict[int, Tensor], ...]:
        return self.signs, self.climb.slopes, self.climb.betas


def branched(
    alone: Bounds,
    rows: Tensor,
    climb: Climb,
    *,
    deadline: float,
    poll: Callable[[], None] = lambda: None,
) -> bool:
    """Whether all <row, logits> of rows (D, K) are proved to be above 0 for an image, before `deadline`.

    `alone`: the bounds of the image; `climb`: to those of the rows. `poll` is called at each step, and may raise.
    """
    size, logits = alone.graph.size, alone.graph.logits
    at_once, most = max(1, min(AT_ONCE, ROWS // size)), min(MOST, NUMBERS // (3 * size))
    nothing = {number: torch.zeros_like(slopes) for number, slopes in climb.slopes.items()}
    every = _Domains(rows, nothing, replace(climb, betas=nothing))
    domains = every.take(~(climb.bound > 0))  # nan, as of what overflows, is unproved too
    while len(domains):
        poll()
        if time.monotonic() > deadline or len(domains) > most:
            return False
        order = domains.climb.bound.argsort()
        some, domains = domains.take(order[:at_once]), domains.take(order[at_once:])
        halves = _split(alone, some)
        if halves is None:
            return False
        within, each = _assumed(alone, halves)
        halves.climb = climbed(
            within, logits, halves.rows, each,
            steps=STEPS, rate=RATE, signs=halves.signs, begin=halves.climb, deadline=deadline,
        )  # fmt: skip
        domains = domains.with_more(halves.take(~(halves.climb.bound > 0)))
    return True


def _assumed(alone: Bounds, domains: _Domains) -> tuple[Bounds, Tensor]:
    """The bounds within each domain, and the number of each."""
    each = torch.arange(len(domains), device=domains.rows.device)
    within = alone.pick(torch.zeros_like(each))
    for number, sign in domains.signs.items():
        source = within.graph.nodes[number].inputs[0]
        low, high = within.low[source], within.high[source]
        within.low[source] = torch.where(sign > 0, low.clamp_min(0), low)
        within.high[source] = torch.where(sign < 0, high.clamp_max(0), high)
        within.relax(number)
    return within, each


def _split(alone: Bounds, domains: _Domains) -> _Domains | None:
    """Both halves of each domain, by the sign whose lines lose most; None where one has no input left to split."""
    within, each = _assumed(alone, domains)
    lost: dict[int, Tensor] = {}

    def see(number: int, rows: Tensor) -> None:
        lines = within.lines[number]
        if number in domains.signs and isinstance(lines, Lines) and lines.free is not None:
            lost[number] = torch.where(lines.free, -rows.clamp_max(0) * lines.d + 1e-9 * lines.d, -1.0).flatten(1)

    climb = domains.climb
    multipliers = {number: beta * domains.signs[number] for number, beta in climb.betas.items()}
    backward(within, alone.graph.logits, domains.rows, each, slopes=climb.slopes, multipliers=multipliers, see=see)
    numbers = sorted(lost)
    if not numbers:
        return None
    worst, at = torch.cat([lost[number] for number in numbers], 1).max(1)
    if bool((worst < 0).any()):
        return None
    halves = domains.take(torch.cat([each, each]))
    start = 0
    for number in numbers:
        width = lost[number].shape[1]
        here = (at >= start) & (at < start + width)
        flat = halves.signs[number].flatten(1)
        domain, unit = each[here], at[here] - start
        flat[domain, unit] = 1
        flat[domain + len(each), unit] = -1
        halves.signs[number] = flat.view_as(halves.signs[number])
        start += width
    return halves
