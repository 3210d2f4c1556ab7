"""Better lower lines of ReLUs (alpha-CROWN, Xu et al. 2021, arXiv:2011.13824), and multipliers of what is known of
their signs (beta-CROWN, Wang et al. 2021, arXiv:2103.06624).

Any slope between 0 and 1 bounds a ReLU from below, so the slopes are climbed to the largest bound, for each row its
own. Where z >= 0 is known of the input of a ReLU, A z - beta z is a lower bound of A z for any beta >= 0; where z <= 0
is, A z + beta z.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.certify.bounds import Bounds, backward
from advbench.certify.relaxations import Lines

RATE, DECAY = 0.2, 0.97  # of Adam's steps, the first and of one after the other


@dataclass(frozen=True)
class Climb:
    """What a climb came to: lower bounds (P,), the best on its way, and at its end, by node of a ReLU, the slopes and
    multipliers (P, ...)."""

    bound: Tensor
    slopes: dict[int, Tensor]
    betas: dict[int, Tensor]


def climbed(
    found: Bounds,
    start: int,
    rows: Tensor,
    image: Tensor,
    *,
    steps: int,
    rate: float = RATE,
    signs: Mapping[int, Tensor] | None = None,
    begin: Climb | None = None,
    enough: float = 0.0,
    deadline: float = float("inf"),
) -> Climb:
    """Lower bounds (P,) of <row, z>, as `backward` gives them, at the best slopes and multipliers of `steps`.

    `signs`: by node of a ReLU, what is known of the signs of its inputs (P, ...): 1, -1, or 0 for nothing. `begin`:
    where an earlier climb, of the same rows over at least as many points, ended. It stops early where all bounds are
    above `enough`, and after `deadline`, in time.monotonic.
    """
    signs = signs or {}
    if begin is None:
        free = {
            number: lines.a[image]
            for number, lines in enumerate(found.lines[:start])
            if isinstance(lines, Lines) and lines.free is not None and bool(lines.free.any())
        }
        nothing = {number: torch.zeros_like(sign) for number, sign in signs.items()}
        begin = Climb(rows.new_full((len(rows),), -torch.inf), free, nothing)
    best, *parts = begin.bound, begin.slopes, begin.betas
    slopes, betas = ({n: part.clone().requires_grad_() for n, part in each.items()} for each in parts)
    if not slopes and not betas:
        return Climb(backward(found, start, rows, image), {}, {})
    adam = torch.optim.Adam([*slopes.values(), *betas.values()], lr=rate)
    for _ in range(steps):
        with torch.enable_grad():
            multipliers = {number: beta * signs[number] for number, beta in betas.items()}
            bound = backward(found, start, rows, image, slopes=slopes, multipliers=multipliers)
            loss = -bound.sum()
        best = torch.maximum(best, bound.detach())
        if bool((best > enough).all()) or time.monotonic() > deadline or not loss.requires_grad:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        for group in adam.param_groups:
            group["lr"] *= DECAY
        with torch.no_grad():
            for number, slope in slopes.items():
                slope.clamp_(found.lines[number].least, 1)  # type: ignore[union-attr]
            for beta in betas.values():
                beta.clamp_min_(0)
    return Climb(best, *({n: part.detach() for n, part in each.items()} for each in (slopes, betas)))
