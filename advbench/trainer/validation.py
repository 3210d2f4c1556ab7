"""Scores on the held-out split, and the detection of catastrophic overfitting."""

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
    """Accuracies in [0, 1]: on clean images, and under PGD and FGSM at the training eps."""

    clean: float
    robust: float
    fgsm: float


def score(
    net: nn.Module,
    held_out: Dataset,
    recipe: Recipe,
    *,
    batch_size: int,
    attacking: Callable[[], AbstractContextManager[Any]] = nullcontext,
    poll: Callable[[], None] = lambda: None,
) -> Scores:
    """The scores of `net`, in eval mode, on `held_out`. The attacks run in `attacking`, the verdicts in float32.

    A sample counts as robust if both the image and its PGD point are classified correctly; likewise for FGSM.
    `poll` is called before each batch, and may raise. With several processes each scores its share.
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
            untargeted = torch.full_like(y, -1)
            eps = torch.full((len(y),), recipe.threat.eps_value, dtype=torch.float64, device=x.device)
            key = keys(recipe.validation.seed, "score", held_out.indices[rows])
            problem = Problem(around(recipe.threat.norm, x, eps), y, untargeted, key)
            objective = partial(_ce, net, y, untargeted)
            with attacking():
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
    """A flag if the PGD accuracy collapsed while the FGSM accuracy did not (Wong et al. 2020, 2001.03994), else None.

    Collapsed: less than half of an earlier best of at least twice chance, and more than 0.2 below the FGSM accuracy.
    `scores`: one for each epoch. The flag tells the first collapse. It is a mere note unless the epoch `deployed` (from
    1) is collapsed itself: trainings recover.
    """
    best, collapses = 0.0, {}
    for epoch, now in enumerate(scores, 1):
        if best >= 2 / classes and now.robust < best / 2 and now.fgsm - now.robust > 0.2:
            collapses[epoch] = (
                f"epoch {epoch}: PGD {now.robust:.1%}, FGSM {now.fgsm:.1%}, after a best PGD accuracy of {best:.1%}"
            )
        best = max(best, now.robust)
    if not collapses:
        return None
    severity: Literal["note", "suspect"] = "suspect" if deployed in collapses else "note"
    return Flag(name="catastrophic-overfitting", severity=severity, detail=next(iter(collapses.values())))
