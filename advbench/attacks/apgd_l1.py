"""Auto-PGD in L1: Croce and Hein 2021, arXiv:2103.01208, algorithm 1 and section 4.

Steps go along the signs of the largest gradient elements, as many as the best point's sparsity says: every 0.04 N
steps it becomes ||x_best - x||_0 / 1.5; where that number fell by more than 5 % the step is set to eps and
the search goes on from the best point, elsewhere the step is divided by 1.5, down to eps / 10. With larger eps,
0.3 N steps are made in the ball of 3 eps, 0.3 N in that of 2 eps, from the best point of the one before, and the
rest in the ball of eps; each ball begins with a look at its first point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import torch
from torch import Tensor

from advbench import rng
from advbench.engine.attack import Answer, Problem, State
from advbench.engine.tensors import rows
from advbench.threat import Region

_FIRST_SHARE = 0.2


@dataclass
class L1State(State):
    best: Tensor
    best_grad: Tensor
    best_value: Tensor
    step: Tensor  # (S,), as a share of the current eps
    share: Tensor  # (S,) of the elements that a step moves
    nonzero: Tensor  # (S,) elements of the best perturbation at the last checkpoint


def start(p: Problem, steps: int, larger_eps: bool) -> L1State:
    """A normal point, projected onto the first ball."""
    x = p.region.x
    size = x[0].numel()
    first = torch.zeros_like(p.y)
    region = _scaled(p.region, _plan(steps, larger_eps, p.y.device)[0][first])
    query = region.project(x + rng.normal(p.key, tuple(x.shape[1:])))
    ones = torch.ones_like(p.y, dtype=x.dtype)
    return L1State(
        query=query,
        i=first,
        best=query,
        best_grad=torch.zeros_like(x),
        best_value=-torch.inf * ones,
        step=ones,
        share=_FIRST_SHARE * ones,
        nonzero=size * ones,
    )


def step(p: Problem, s: L1State, a: Answer, steps: int, larger_eps: bool) -> L1State:
    """One step along the largest elements of the gradient, or into the next ball."""
    x, size = p.region.x, p.region.x[0].numel()
    factors, begins, checks = _plan(steps, larger_eps, p.y.device)
    at = s.i.clamp_max(answers(steps, larger_eps) - 1)
    begin, check = begins[at], checks[at]
    factor, after = factors[at], factors[at + 1]

    better = (a.value > s.best_value) | begin
    best, best_grad = rows(better, s.query, s.best), rows(better, a.gradient, s.best_grad)
    best_value = torch.where(better, a.value, s.best_value)

    count = (best != x).flatten(1).sum(1).to(x.dtype)
    # The first ball without larger eps starts dense: its own share and count stand until the first checkpoint.
    known = begin & ((s.i > 0) | larger_eps)
    sparser = check & (count < 0.95 * s.nonzero)
    share = torch.where(check | known, count / size / 1.5, s.share)
    nonzero = torch.where(check | known, count, s.nonzero)
    length = torch.where(check, (s.step / 1.5).clamp_min(0.1), s.step)
    length = torch.where(sparser | begin, 1.0, length)
    z, g = rows(sparser, best, s.query), rows(sparser, best_grad, a.gradient)

    ball = _scaled(p.region, factor)
    moved = ball.project(z + length.view(-1, 1, 1, 1) * ball.e * _largest(g, share))
    entered = _scaled(p.region, after).project(best)
    return L1State(
        query=rows(after < factor, entered, moved),
        i=s.i + 1,
        best=best,
        best_grad=best_grad,
        best_value=best_value,
        step=length,
        share=share,
        nonzero=nonzero,
    )


def _scaled(region: Region, factor: Tensor) -> Region:
    return replace(region, eps=region.eps * factor)


def _largest(g: Tensor, share: Tensor) -> Tensor:
    """The signs of the largest `share` (S,) of g's elements, one at least, scaled to an L1 norm of 1."""
    size = g[0].numel()
    sorted_ = g.abs().flatten(1).sort(dim=1).values
    place = ((1 - share) * size).clamp(0, size - 1).long()
    least = sorted_.gather(1, place[:, None]).view(-1, 1, 1, 1)
    signs = g.sign() * (g.abs() >= least)
    return signs / signs.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)


def answers(steps: int, larger_eps: bool) -> int:
    """How many there are: one a step, and one for the first point of each ball."""
    lengths = _lengths(steps, larger_eps)
    return sum(lengths) + len(lengths)


def _lengths(steps: int, larger_eps: bool) -> list[int]:
    """The steps in each ball, the largest ball first."""
    lengths = [ceil(0.3 * steps), ceil(0.3 * steps)] if larger_eps else []
    return [*lengths, max(steps - sum(lengths), 1)]


@cache
def _plan(steps: int, larger_eps: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """By number of answers so far: eps factor of the query, whether it is a ball's first, whether its answer is a
    checkpoint. The query after the last answer, which nobody asks for, is one more of the last ball's."""
    lengths = _lengths(steps, larger_eps)
    factors: list[float] = []
    begins: list[bool] = []
    checks: list[bool] = []
    for factor, length in zip(range(len(lengths), 0, -1), lengths, strict=True):
        window = max(int(0.04 * length), 1)
        for i in range(length + 1):
            factors.append(float(factor))
            begins.append(i == 0)
            checks.append(i > 0 and i % window == 0)
    return (
        torch.tensor([*factors, 1.0], device=device),
        torch.tensor([*begins, False], device=device),
        torch.tensor([*checks, False], device=device),
    )
