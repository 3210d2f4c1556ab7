"""Losses, which attacks maximise: one value per row, from logits (S, K), labels y (S,) and targets (S,).

A target is a class to reach, or -1 for an untargeted attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the model misclassifies, (S,) bool. Rows with NaN or infinite logits count as misclassified."""
    other = logits.argmax(1) != y
    if logits.device.type == "cpu" and math.isfinite(logits.detach().sum()):  # one sum is cheaper there
        return other
    return other | ((logits * 0).sum(1) != 0)  # NaN where a logit is not finite


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y (S,): positive where the model misclassifies."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def likeliest(logits: Tensor, y: Tensor, n: int) -> Tensor:
    """The n wrong classes (S, n) with the largest logits, largest first; all K - 1 if n is larger."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(n, logits.shape[1] - 1), dim=1).indices


def aims(logits: Tensor, y: Tensor, n: int, target: int | Tensor | None) -> Tensor:
    """Target classes (S, T) by an attack's settings.

    With `target`, a class or one for each row (S,), T = 1: that class, and -1 (untargeted) for its own images.
    Otherwise the `n` likeliest wrong classes; with n = 0, -1 and T = 1.
    """
    none = torch.full_like(y, -1)
    if target is not None:
        return torch.where(y == target, none, target)[:, None]
    return likeliest(logits, y, n) if n else none[:, None]


def ce(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of y; with a target, minus the cross-entropy of the target."""
    towards = target >= 0
    loss = functional.cross_entropy(logits, torch.where(towards, target, y), reduction="none")
    return torch.where(towards, -loss, loss)


def cw(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The margin z_t - z_y (Carlini and Wagner 2017, 1608.04644), t the target or the likeliest wrong class."""
    if not logits.requires_grad and target.device.type == "cpu" and not bool((target >= 0).any()):
        return margin(logits, y)  # the same numbers in half as many operations
    reached, own = logits.gather(1, torch.stack([_rival(logits, y, target), y], 1)).unbind(1)
    return reached - own


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, 2003.01690, eqs. 4 and 6).

    Untargeted -(z_y - max_{k != y} z_k) / (z_pi1 - z_pi3), from 3 classes on; targeted
    -(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2), from 4 classes on.
    Raises ValueError for fewer than 3 classes: attacks then use `cw` instead.
    """
    if logits.shape[1] < 3:
        raise ValueError("the DLR loss needs 3 classes")
    order = logits.detach().topk(min(4, logits.shape[1]), dim=1).indices
    # A single gather: on small networks the operations of a loss take as long as a layer.
    places = torch.cat([torch.stack([_rival(logits, y, target), y], 1), order], 1)
    reached, own, first, _, third, *fourth = logits.gather(1, places).unbind(1)
    lower = torch.where(target >= 0, (third + fourth[0]) / 2, third) if fourth else third
    return (reached - own) / (first - lower + 1e-12)


def _rival(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target, or without one the likeliest wrong class: (S,) int64."""
    best = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
    return torch.where(target >= 0, target, best)


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(logits)) (S,), `clean` (S, K) at x and `logits` (S, K) at x' (Zhang et al. 2019,
    1901.08573)."""
    was = functional.log_softmax(clean, dim=1)
    return (was.exp() * (was - functional.log_softmax(logits, dim=1))).sum(1)


KL = "kl"  # not in LOSSES: it needs the clean logits, and neither y nor a target
LOSSES: dict[str, Loss] = {"ce": ce, "cw": cw, "dlr": dlr}
