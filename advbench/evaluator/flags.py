"""Is the number to be believed? Reasons to doubt it, raised on every evaluation.

Sources: the checks of AutoAttack, Carlini et al. 2019 (1902.06705), Pintor et al. 2022 (2106.09947).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from advbench.attacks.engine import Attack
from advbench.data.dataset import Dataset
from advbench.evaluator.bench import Bench
from advbench.record import Fates, Flag
from advbench.statistics import wilson

_SQUARE_NOTE, _SQUARE_SUSPECT = 0.002, 0.02  # shares of the samples that only Square felled


def is_random(net: nn.Module, data: Dataset) -> bool:
    """Whether two passes over the same images give different outputs. `net` is in eval mode."""
    x, _ = data.batch(slice(0, 64))
    with torch.no_grad():
        first, second = net(x), net(x)
    return not torch.equal(first.nan_to_num(), second.nan_to_num())


def judge(
    bench: Bench,
    fates: Fates,
    attacks: Sequence[Attack],
    eps: Sequence[float],
    *,
    in_train_mode: bool,
    notes: Sequence[str],
) -> list[Flag]:
    """The flags of a finished evaluation."""
    found = [Flag(name="model", severity="note", detail=note) for note in notes]
    n, classes = len(fates), bench.logits.shape[1]
    low, high = wilson(n // 2, n)
    if n < 1000:
        found.append(
            Flag(
                name="small-n", severity="note", detail=f"{n} images: intervals up to +-{50 * (high - low):.1f} points"
            )
        )
    if in_train_mode:
        found.append(
            Flag(name="train-mode", severity="note", detail="the model came in train mode; eval mode was used")
        )
    if classes < 4:
        found.append(Flag(name="few-classes", severity="note", detail=f"{classes} classes: DLR replaced by the margin"))
    if not bool(bench.logits.isfinite().all()):
        share = float((~bench.logits.isfinite().all(1)).double().mean())
        detail = f"NaN or infinite logits on {share:.1%} of the clean images: they count as wrong"
        found.append(Flag(name="non-finite", severity="broken", detail=detail))
    if bench.oracle.random:
        detail = "outputs differ from pass to pass: the mean of 20 passes decides"
        found.append(Flag(name="random", severity="suspect", detail=detail))
    if _probabilities(bench.logits):
        detail = "outputs are probabilities: give logits, or gradients vanish"
        found.append(Flag(name="probabilities", severity="suspect", detail=detail))
    found += _square(fates, attacks, eps)
    if bench.unverified:
        detail = f"{bench.unverified} hits of the search copy were refused by the model itself"
        found.append(Flag(name="unverified", severity="note", detail=detail))
    return found


def _probabilities(logits: torch.Tensor) -> bool:
    inside = (logits.min() > -1e-5) & (logits.max() < 1 + 1e-5)
    return bool(inside & ((logits.sum(1) - 1).abs() < 1e-5).all())


def _square(fates: Fates, attacks: Sequence[Attack], eps: Sequence[float]) -> list[Flag]:
    """Square fells what gradients could not: by a little on honest nets, by much where gradients are masked."""
    names = [attack.name for attack in attacks]
    if "square" not in names or len(names) < 2:
        return []
    share = float(np.mean(fates.by == names.index("square")))
    if share <= _SQUARE_NOTE:
        return []
    detail = f"Square felled {share:.1%} of the images that the attacks with gradients could not"
    return [Flag(name="square-wins", severity="suspect" if share > _SQUARE_SUSPECT else "note", detail=detail)]
