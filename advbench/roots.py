"""Roots of the sums to which projections lead: one root in each row, by the same operations in every row.

Both sums are monotone and piecewise linear, and are solved exactly near their roots. No result depends on other rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 24  # by which `falling` narrows the range of its root; then it solves


def rising(weights: Tensor, until: Tensor, level: Tensor, rounds: int) -> Tensor:
    """The smallest t (S, 1) >= 0 at which sum_i min(pace_i t, full_i) reaches `level` (S, 1) >= 0.

    `weights` (2, S, n) >= 0: full and pace; `until` (S, n) = full / pace. If the sum never reaches the level, t is
    beyond every `until`, or infinite. The sum is concave. So Newton's steps from the left climb to the root, and are
    exact once on its piece; after too few rounds t is too small. On a CPU the rounds end once none changes a row.
    """
    cpu = weights.device.type == "cpu"
    masked = torch.empty_like(weights)
    masks = masked if cpu else torch.empty_like(weights, dtype=torch.bool)  # boolean ones are slow on CPUs
    t = level / weights[1].sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    for _ in range(rounds):
        torch.le(until, t, out=masks[0])
        torch.gt(until, t, out=masks[1])
        spent, speed = torch.mul(weights, masks, out=masked).sum(2, keepdim=True)
        before, t = t, torch.fmax(t, (level - spent) / speed)  # a speed of 0 gives infinity, or NaN, which fmax ignores
        if cpu and torch.equal(t, before):
            break
    return t


def falling(a: Tensor, most: Tensor, level: Tensor, bits: int | None = None) -> Tensor:
    """The smallest shift (S, 1) >= 0 at which sum_i min(max(a_i - shift, 0), most_i) is at most `level` (S, 1).

    `a`, `most` (S, n) >= 0. Each round finds `bits` more bits of the shift by the sums at 2^bits - 1 points: one bit on
    a CPU and two on CUDA, where half as many kernels are worth some more reads of memory. In the remaining range, 2^-24
    of the largest a, the sum is taken as linear.
    """
    bits = bits or (1 if a.device.type == "cpu" else 2)
    zero, points = torch.zeros_like(level), torch.arange(1, 2**bits, device=a.device)
    high, part = a.amax(1, keepdim=True), 1.0
    top = high
    for _ in range(_BITS // bits):
        part /= 2**bits
        shifts = torch.addcmul(high, top, points, value=-part)  # (S, M), from the largest, so that the sums rise
        sums = torch.clamp(a[:, None] - shifts[:, :, None], zero[0], most[:, None]).sum(2)
        high = torch.addcmul(high, top, torch.searchsorted(sums, level, right=True), value=-part)
    d = torch.clamp(a - high, zero[0], most)
    sloped = ((d > 0) & (d < most)).sum(1, keepdim=True)
    exact = high - (level - d.sum(1, keepdim=True)) / sloped
    shift = torch.where(exact >= torch.sub(high, top, alpha=part), exact, high)
    return torch.where(torch.minimum(a, most).sum(1, keepdim=True) <= level, zero, shift)
