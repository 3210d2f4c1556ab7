"""Linearised decision boundaries, and the shortest step within [0, 1]^d onto a hyperplane.

Croce and Hein 2020, arXiv:1907.02044, eq. 5 and appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.engine.attack import Answer, Problem
from advbench.roots import rising
from advbench.threat import margin_to_box

_ROUNDS = 8  # one step of a thousand on real images would need more, and falls short by 0.2 % of the rise at most
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
    w = w.flatten(1) * rise.sign()[:, None]
    rise = rise.abs()[:, None]
    slope = w.abs()
    reach = margin_to_box(flat, w)
    if norm == "l1":
        d = _fill_steepest(slope, reach, rise)
    elif norm == "l2":
        until = reach / slope.clamp_min(1 / _FAR)
        d = slope * until.minimum(rising(torch.stack([reach, slope]).mul_(slope), until, rise, _ROUNDS))
    else:
        d = reach.minimum(rising(torch.stack([slope * reach, slope]), reach, rise, _ROUNDS))
    # Rounding may leave the box by one unit in the last place.
    return d.mul_(w.sign()).add_(flat).clamp_(0, 1).sub_(flat).view(shape)


def _fill_steepest(slope: Tensor, reach: Tensor, rise: Tensor) -> Tensor:
    """|d| for L1: elements move in order of slope, largest first, each to its border, until <w, d> = rise."""
    order = slope.argsort(dim=1, descending=True, stable=True)
    gain = (slope * reach).gather(1, order)
    before = gain.cumsum(1) - gain
    share = ((rise - before) / gain.clamp_min(torch.finfo(gain.dtype).tiny)).clamp(0, 1)
    return torch.zeros_like(slope).scatter_(1, order, share) * reach * (slope > 0)
