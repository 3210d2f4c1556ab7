"""Attacks that run the model themselves on a whole batch at one eps: those of other libraries, or a user's function.

They are called once per batch and grid point, always with the same batches and with the batch's own seed. Their results
are checked like those of a search: the untouched model judges each returned point, and points outside the ball do not
count.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advbench import rng
from advbench.engine.attack import Attack
from advbench.engine.kernels import out_of_memory
from advbench.engine.losses import margin, wrong
from advbench.engine.oracle import Oracle
from advbench.errors import UserError, one_line
from advbench.threat import around


@dataclass(frozen=True, kw_only=True)
class WholeBatch(Attack):
    """Base class. A subclass must define `points` only."""

    norms = ("linf", "l2", "l1", "fourier-linf")

    steps: int = 1

    def points(self, net: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int) -> Tensor:
        """Candidate adversarial examples (B, C, H, W) for `net`, images x (B, C, H, W) in [0, 1] and labels y (B,)."""
        raise NotImplementedError


def attack_batch(
    attack: WholeBatch, oracle: Oracle, x: Tensor, y: Tensor, index: Tensor, eps: float, *, norm: str, seed: int
) -> dict[str, Any]:
    """Run `attack` on one batch of images x (B, C, H, W), labels y (B,) and places `index` (B,) in the dataset.

    Returns `fell`, `distance`, `nonfinite` and `outside` as in `Verdicts`, and `points` (F, C, H, W), those of the
    images that fell, in order. For the images that stand, `margin` (B,) and `attempts` (S, C, H, W): the margin of the
    returned point, -inf for an image that fell or whose point is outside the ball, and the points of the others, in
    order. UserError if the attack raises, or does not return a tensor of the shape of x.
    """
    batch_seed = int(rng.keys(seed, attack.name, index[:1])[0]) % 2**31
    net = copy.deepcopy(oracle.net)  # the attack may change its mode, weights or gradients
    try:
        with rng.kept(batch_seed), torch.enable_grad():
            z = attack.points(net, x.clone(), y.clone(), eps, norm=norm, seed=seed)
    except Exception as error:  # a user's code may raise anything
        if out_of_memory(error):
            raise
        raise UserError(f"attack {attack.name} failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(z, Tensor) or z.shape != x.shape:
        got = f"shape {'x'.join(map(str, z.shape))}" if isinstance(z, Tensor) else type(z).__name__
        shape = "x".join(map(str, x.shape))
        raise UserError(f"attack {attack.name} must return its points, a tensor of shape {shape}, not {got}")
    z = z.detach().to(x)
    region = around(norm, x, torch.full(y.shape, eps, dtype=torch.float64, device=x.device))
    logits, inside = oracle.logits(z), region.contains(z)
    fell = wrong(logits, y) & inside
    stands = inside & ~fell
    size = region.size(z.double() - x.double())
    return {
        "fell": fell.cpu(),
        "distance": torch.where(fell, size, torch.inf).cpu(),
        "points": z[fell].cpu(),
        "margin": torch.where(stands, margin(logits, y), -torch.inf).cpu(),
        "attempts": z[stands].cpu(),
        "nonfinite": int(((~logits.isfinite()).any(1) & inside).sum()),
        "outside": int((~inside).sum()),
    }


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of `attack_batch` on several batches, concatenated."""
    counts = {name: sum(part[name] for part in parts) for name in ("nonfinite", "outside")}
    names = ("fell", "distance", "points", "margin", "attempts")
    return {name: torch.cat([part[name] for part in parts]) for name in names} | counts
