"""Scores on the held-out split, and the watch for catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advbench import ranks
from advbench.attacks.pgd import PGD
from advbench.data.dataset import Dataset
from advbench.engine.attack import Problem, solve
from advbench.engine.losses import ce, wrong
from advbench.recipe import Recipe
from advbench.record import Flag
from advbench.rng import keys
from advbench.threat import around
from advbench.trainer.modes import attack_mode


@dataclass(frozen=True)
class Scores:
    """Accuracies, 0 to 1: on clean images, under PGD and under FGSM at the training eps."""

    clean: float
    robust: float
    fgsm: float


def score(
    net: nn.Module,
    held_out: Dataset,
    recipe: Recipe,
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    poll: Callable[[], None] = lambda: None,
) -> Scores:
    """Score `net`, in eval mode, on `held_out`. The attack runs in `autocast`, the verdicts in float32.

    A sample counts as robust when neither it nor its PGD point is answered wrongly. `poll` is called between
    batches, and may raise. Of several processes each scores its share.
    """
    total, held_out = len(held_out), held_out.subset(range(ranks.rank(), len(held_out), ranks.world()))
    pgd = PGD(name="pgd", steps=recipe.validation.steps)
    fgsm = PGD(name="fgsm", steps=1, rel_step=1.0, random_start=False)
    right = torch.zeros(3, dtype=torch.int64, device=held_out.device)
    with attack_mode([net], "eval"):
        for start in range(0, len(held_out), batch_size):
            poll()
            rows = slice(start, start + batch_size)
            x, y = held_out.batch(rows)
            none = torch.full_like(y, -1)
            eps = torch.full((len(y),), recipe.threat.eps_value, dtype=torch.float64, device=x.device)
            key = keys(recipe.validation.seed, "score", held_out.indices[rows])
            problem = Problem(around(recipe.threat.norm, x, eps), y, none, key)
            objective = partial(_ce, net, y, none)
            with autocast():
                points = [solve(attack, objective, problem) for attack in (pgd, fgsm)]
            with torch.no_grad():
                clean, robust, single = (~wrong(net(z), y) for z in (x, *points))
            right += torch.stack([clean.sum(), (clean & robust).sum(), (clean & single).sum()])
    counts = ranks.gather_objects(right.tolist())
    clean_share, robust_share, fgsm_share = (sum(count) / total for count in zip(*counts, strict=True))
    return Scores(clean_share, robust_share, fgsm_share)


def _ce(net: nn.Module, y: Tensor, target: Tensor, z: Tensor) -> Tensor:
    return ce(net(z).float(), y, target)


def catastrophic_overfitting(scores: Sequence[Scores], classes: int, deployed: int) -> Flag | None:
    """The flag for a PGD accuracy that collapsed while FGSM's stayed (Wong et al. 2020, 2001.03994), if it did.

    Collapsed: under half of an earlier best that was twice chance, and a fifth of all samples below FGSM's.
    A note only when the epoch `deployed` (from 1) lies before.
    """
    best = 0.0
    for epoch, at in enumerate(scores, 1):
        if best >= 2 / classes and at.robust < best / 2 and at.fgsm - at.robust > 0.2:
            detail = f"epoch {epoch}: PGD {at.robust:.1%}, FGSM {at.fgsm:.1%}, after a best PGD accuracy of {best:.1%}"
            severity: Literal["note", "suspect"] = "note" if deployed < epoch else "suspect"
            return Flag(name="catastrophic-overfitting", severity=severity, detail=detail)
        best = max(best, at.robust)
    return None
