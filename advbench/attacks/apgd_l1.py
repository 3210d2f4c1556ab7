"""Auto-PGD in L1: Croce and Hein 2021, arXiv:2103.01208, algorithm 1 and section 4.

A step goes along the signs of the largest gradient elements. Every 0.04 N steps their number is set to
||x_best - x||_0 / 1.5. If ||x_best - x||_0 fell by more than 5 %, the step size is reset to eps and the search
continues from the best point; otherwise the step size is divided by 1.5, down to eps / 10.

With larger eps, the first 0.3 N steps are taken in the ball of 3 eps, 0.3 N in that of 2 eps, and the rest in the ball
of eps. Each ball starts from the best point of the ball before, projected, and first queries that point.
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

_INITIAL_SHARE = 0.2  # of the elements, moved by the first steps


@dataclass
class L1State(State):
    best: Tensor
    best_grad: Tensor
    best_value: Tensor
    step: Tensor  # (S,) step size as a share of the current eps
    share: Tensor  # (S,) of the elements that a step moves
    nonzero: Tensor  # (S,) number of non-zero elements of the best perturbation at the last checkpoint


def start(p: Problem, steps: int, larger_eps: bool) -> L1State:
    """The state with a first query of x plus standard normal noise, projected onto the first ball."""
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
        share=_INITIAL_SHARE * ones,
        nonzero=size * ones,
    )


def step(p: Problem, s: L1State, a: Answer, steps: int, larger_eps: bool) -> L1State:
    """The state after a step along the largest gradient elements, or after the change to the next ball."""
    x, size = p.region.x, p.region.x[0].numel()
    factors, begins, checks, counts = _plan(steps, larger_eps, p.y.device)
    at = s.i.clamp_max(answers(steps, larger_eps) - 1)
    begin, check, counted = begins[at], checks[at], counts[at]
    factor, after = factors[at], factors[at + 1]

    better = (a.value > s.best_value) | begin
    best, best_grad = rows(better, s.query, s.best), rows(better, a.gradient, s.best_grad)
    best_value = torch.where(better, a.value, s.best_value)

    count = (best != x).flatten(1).sum(1, dtype=x.dtype)
    sparser = check & (count < 0.95 * s.nonzero)
    share = torch.where(counted, count / size / 1.5, s.share)
    nonzero = torch.where(counted, count, s.nonzero)
    length = torch.where(check, (s.step / 1.5).clamp_min(0.1), s.step)
    length = torch.where(sparser | begin, 1.0, length)
    z, g = rows(sparser, best, s.query), rows(sparser, best_grad, a.gradient)

    ball = _scaled(p.region, after)
    stepped = torch.addcmul(z, _largest(g, share), (length * ball.eps).to(x.dtype).view(-1, 1, 1, 1))
    return L1State(
        query=ball.project(rows(after < factor, best, stepped)),
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
    """The signs of the largest `share` (S,) of g's elements, at least one, scaled to L1 norm 1; zeros elsewhere."""
    size = g[0].numel()
    size_of = g.abs()
    sorted_ = size_of.flatten(1).sort(dim=1).values
    place = ((1 - share) * size).clamp(0, size - 1).long()
    least = sorted_.gather(1, place[:, None]).view(-1, 1, 1, 1)
    signs = g.sign() * (size_of >= least)
    return signs / signs.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)


def answers(steps: int, larger_eps: bool) -> int:
    """The number of answers to an item: one per step, and one for the first point of each ball."""
    lengths = _lengths(steps, larger_eps)
    return sum(lengths) + len(lengths)


def _lengths(steps: int, larger_eps: bool) -> list[int]:
    """The number of steps in each ball, largest ball first."""
    lengths = [ceil(0.3 * steps), ceil(0.3 * steps)] if larger_eps else []
    return [*lengths, max(steps - sum(lengths), 1)]


@cache
def _plan(steps: int, larger_eps: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each number of answers so far: the query's factor of eps, whether it is its ball's first, whether its answer
    is a checkpoint, and whether the best perturbation's elements are counted. One more entry stands for the state after
    the last answer, whose query is not used."""
    lengths = _lengths(steps, larger_eps)
    factors: list[float] = []
    begins: list[bool] = []
    checks: list[bool] = []
    counts: list[bool] = []
    for factor, length in zip(range(len(lengths), 0, -1), lengths, strict=True):
        window = max(int(0.04 * length), 1)
        for i in range(length + 1):
            factors.append(float(factor))
            begins.append(i == 0)
            checks.append(i > 0 and i % window == 0)
            # Without larger eps the search starts dense: the first share and count hold until the first checkpoint.
            counts.append(checks[-1] or (i == 0 and larger_eps))
    return (
        torch.tensor([*factors, 1.0], device=device),
        torch.tensor([*begins, False], device=device),
        torch.tensor([*checks, False], device=device),
        torch.tensor([*counts, False], device=device),
    )
