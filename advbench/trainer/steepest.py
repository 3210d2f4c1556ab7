"""The optimisers of Faghri et al. 2021 (arXiv:2102.08868), each with the implicit bias of another norm.

Each treats all its weights as one vector w with gradient g:

sign-gd: w <- w - lr ||g||_1 sign(g), steepest descent in Linf;
coordinate-descent: w_j <- w_j - lr g_j for j = argmax |g_j| alone, steepest descent in l1;
fista: w <- prox(y - lr g(y)), y the point extrapolated by Nesterov's momentum (Beck and Teboulle 2009).

The bias shows on separable data once the loss is small; the first two need `weight_decay=0`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Steepest(torch.optim.Optimizer):
    """Sign gradient descent (`sign`) or greedy coordinate descent. `weight_decay` adds its multiple of w to g."""

    def __init__(self, weights: Iterable[nn.Parameter], *, lr: float, weight_decay: float, sign: bool) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "sign": sign})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            gradients = [w.grad + group["weight_decay"] * w for w in weights]
            if group["sign"]:
                total = torch.stack([g.abs().sum() for g in gradients]).sum()
                for w, g in zip(weights, gradients, strict=True):
                    w.sub_(group["lr"] * total * g.sign())
            else:
                sizes = torch.stack([g.abs().max() for g in gradients])
                # Exactly one coordinate: among ties the first tensor, and in it the first entry.
                first = torch.arange(len(sizes), device=sizes.device) == sizes.argmax()
                for w, g, chosen in zip(weights, gradients, first, strict=True):
                    place = torch.arange(g.numel(), device=g.device).view(g.shape)  # in any memory layout
                    w.sub_(group["lr"] * g * (chosen & (place == g.abs().argmax())))


class Fista(torch.optim.Optimizer):
    """Minimises loss + `weight_decay` x the sum over output units of ||w_unit|| in the norm `penalty`, without biases.

    The net's weights are y, where the next gradient is taken. The momentum restarts when it points uphill
    (O'Donoghue and Candes 2015).
    """

    def __init__(self, weights: Iterable[nn.Parameter], *, lr: float, weight_decay: float, penalty: str) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "penalty": penalty})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state["x"], state["t"] = y.clone(), torch.ones((), device=y.device)
                x = y - group["lr"] * y.grad
                if y.dim() > 1:
                    x = prox(x.flatten(1), group["lr"] * group["weight_decay"], group["penalty"]).view_as(y)
                t = torch.where(((y - x) * (x - state["x"])).sum() > 0, 1.0, state["t"])
                following = (1 + (1 + 4 * t * t).sqrt()) / 2
                y.copy_(x + (t - 1) / following * (x - state["x"]))
                state["x"], state["t"] = x, following


def prox(v: Tensor, t: float, penalty: str) -> Tensor:
    """argmin_w ||w - v||_2^2 / 2 + t ||w|| for each row of v (R, D), in l1, l2 or linf."""
    if penalty == "l1":
        return v.sign() * (v.abs() - t).clamp_min(0)
    if penalty == "l2":
        return v * (1 - t / v.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_min(0)
    return v - _to_l1_ball(v, t)


def _to_l1_ball(v: Tensor, radius: float) -> Tensor:
    """The nearest point to each row of v in the l1 ball of `radius` (Duchi et al. 2008)."""
    a = v.abs()
    largest = a.sort(1, descending=True).values
    excess = largest.cumsum(1) - radius
    count = torch.arange(1, v.shape[1] + 1, device=v.device)
    last = (largest * count > excess).sum(1, keepdim=True).clamp_min(1)
    shift = (excess.gather(1, last - 1) / last).clamp_min(0)
    return v.sign() * (a - shift).clamp_min(0)
