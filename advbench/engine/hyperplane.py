"""Linearised decision boundaries, and the shortest step within [0, 1]^d onto a hyperplane.

Croce and Hein 2020, arXiv:1907.02044, eq. 5 and appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.engine.attack import Answer, Problem
from advbench.threat import margin_to_box

_NEWTON_STEPS = 16  # real images needed at most 12; on CUDA all are taken
_FAR = 1e30  # stands for infinity, because 0 x infinity is NaN


def nearest_boundary(p: Problem, a: Answer) -> tuple[Tensor, Tensor]:
    """z_k - z_y (S,) and its gradient (S, C, H, W), where k is the class whose linearised boundary is nearest.

    `a` is an answer to "jacobian" with the gradient of every logit, (S, K, C, H, W).
    """
    own = p.y[:, None]
    at = torch.arange(len(p.y), device=p.y.device)
    f = a.logits - a.logits.gather(1, own)
    w = a.gradient - a.gradient[at, p.y][:, None]
    dual = p.region.dual(w.flatten(0, 1)).view_as(f)
    nearest = (f.abs() / (dual + 1e-12)).scatter(1, own, torch.inf).argmin(1)
    return f[at, nearest], w[at, nearest]


def to_hyperplane(x: Tensor, w: Tensor, rise: Tensor, norm: str) -> Tensor:
    """The smallest d (S, C, H, W) in `norm` (linf, l2, l1) with <w, d> = rise and x + d in [0, 1].

    x and w (S, C, H, W), rise (S,). If the box keeps <w, d> below `rise`, d brings it as close as the box allows.
    """
    flat, shape = x.flatten(1), x.shape
    w = w.flatten(1) * torch.where(rise < 0, -1.0, 1.0)[:, None]
    rise = rise.abs()[:, None]
    slope, sign = w.abs(), w.sign()
    reach = margin_to_box(flat, sign)
    if norm == "l1":
        d = _fill_steepest(slope, reach, rise)
    elif norm == "l2":
        until = reach / slope.clamp_min(1 / _FAR)
        d = slope * until.minimum(_time(slope * reach, slope * slope, until, rise))
    else:
        d = reach.minimum(_time(slope * reach, slope, reach, rise))
    # Rounding may leave the box by one unit in the last place.
    return d.mul_(sign).add_(flat).clamp_(0, 1).sub_(flat).view(shape)


def _time(full: Tensor, pace: Tensor, reach: Tensor, rise: Tensor) -> Tensor:
    """The smallest t (S, 1) at which the elements' contributions sum to `rise`.

    An element contributes `pace` x t until t is its `reach`, and `full` from then on. The sum is concave and piecewise
    linear in t. So Newton's steps from the left climb to the root, and are exact once on the root's piece. They do not
    change after that, which is why stopping early changes no row.
    """
    t = torch.zeros_like(rise)
    free, spent = torch.empty_like(reach), torch.empty_like(reach)
    for _ in range(_NEWTON_STEPS):
        # Masks of 1 and 0 in floating point: boolean masks take five times as long on CPUs.
        torch.gt(reach, t, out=free)
        torch.le(reach, t, out=spent)
        left = rise - torch.linalg.vecdot(full, spent)[:, None]
        speed = torch.linalg.vecdot(pace, free)[:, None]
        # A speed of 0: every element has reached the border of the box.
        new = torch.where(speed > 0, torch.maximum(left / speed, t).clamp_max(_FAR), t)
        settled = new == t
        t = new
        if t.device.type == "cpu" and bool(settled.all()):
            break
    return t


def _fill_steepest(slope: Tensor, reach: Tensor, rise: Tensor) -> Tensor:
    """|d| for L1: elements move in order of slope, largest first, each to its border, until <w, d> = rise."""
    order = slope.argsort(dim=1, descending=True, stable=True)
    gain = (slope * reach).gather(1, order)
    before = gain.cumsum(1) - gain
    share = ((rise - before) / gain.clamp_min(torch.finfo(gain.dtype).tiny)).clamp(0, 1)
    return torch.zeros_like(slope).scatter_(1, order, share) * reach * (slope > 0)
