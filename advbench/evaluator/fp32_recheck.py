"""The recheck in fp32 of images that stand after a search in bf16: APGD-CE, and APGD-T on the 3 nearest targets.

A search copy in bf16 is a coarser function than the model, and it can hide a failure in two ways. Its rounding keeps
standing what nearly fell: an image whose best margin came within NEAR times the copy's error is in doubt. Or its
gradients miss directions that the model has: an image at which they point elsewhere is in doubt, however far from
failure. The images in doubt are rechecked, and no others. The two attacks keep their names and thus their random
starts, so that they do exactly what they do in an evaluation all in fp32.

Square follows no gradient, but bf16 rounds away small progress. `Runner.curve` therefore repeats attacks without
gradients in fp32 on the images that they brought near.

Measured by `tests/bench/bf16_recheck.py --attack apgd-ce,apgd-t`, which rechecks all images that stand, on six nets
(small_cnn_16_32_100). On 500 images, with logits still in bf16, PGD-AT and compactness on Fashion-MNIST at 0.1 and a
standard net on MNIST at 0.06: of 1,116 that stood one fell, which bf16 had brought past 0. On 150 images MART and
TRADES on MNIST at 0.3, N-FGSM on CIFAR-10 at 4/255 and the first net again: of 360 that stood 7 were in doubt, and none
fell. The evaluation all in fp32 felled no image that stood by this. AutoAttack leaves as many standing as in fp32: on
360 digits (mlp, PGD-AT) at each of 6 eps, on 64 images of MART (53), and of PGD-AT on Fashion-MNIST (39, after one fell
to Square in fp32, at 0.36 times the error). On the digits Square in fp32 has 1.1 % of the useful rows
(`tests/bench/slot_steps.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from advbench.attacks.apgd import APGD
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Problem
from advbench.engine.oracle import Oracle
from advbench.record import RECHECK_SET, AttackRef
from advbench.threat import around

SET = RECHECK_SET
RECHECK = {"set": SET, "precision": "fp32", "images": "in doubt"}  # in the record beside an attack's settings
TARGETS = 3
NEAR = 2.0  # times the copy's error in a logit: so far a margin, which is a difference of two, may be off
ALIKE = 0.5  # the least cosine between gradients that point the same way


def recheck_attacks(asked: Sequence[Attack], *, norm: str, classes: int) -> tuple[list[Attack], list[AttackRef]]:
    """The attacks of the recheck that follows `asked`, and their references in the record.

    They take the largest `eot` of `asked`, and straight-through gradients if any of `asked` does.
    """
    l1 = norm == "l1"
    eot = max(attack.eot for attack in asked)
    through = any(attack.straight_through for attack in asked)
    made: list[Attack] = [
        APGD(name=name, loss=loss, n_targets=targets, larger_eps=l1, eot=eot, straight_through=through).for_model(
            norm, classes
        )
        for name, loss, targets in (("apgd-ce", "ce", 0), ("apgd-t", "dlr", TARGETS))
    ]
    refs = [AttackRef(name=one.name, version=str(one.version), settings={**one.settings(), **RECHECK}) for one in made]
    return made, refs


def covered(asked: Sequence[Attack]) -> bool:
    """Whether `asked` holds APGD-T itself, so that the recheck does not make it stronger than it is all in fp32."""
    return any(isinstance(attack, APGD) and attack.name == "apgd-t" for attack in asked)


def copy_error(oracle: Oracle, data: Dataset, logits: Tensor) -> float:
    """The largest error of `oracle.search` in a logit of a clean image, of which the model has `logits` (n, K).

    In units of the image's largest logit.
    """
    with torch.no_grad():
        copied = torch.cat([oracle.search(data.batch(at)[0]).float()[:n] for at, n in _passes(data, oracle.slots)])
    largest = logits.abs().amax(1)
    error = (copied - logits).abs().amax(1) / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    return float(error.nan_to_num(0).max())


def near_margins(error: float, logits: Tensor) -> NDArray[np.float64]:
    """For each image (n,), the distance of a margin from 0 within which a copy may hide that the image fell.

    It is NEAR times the `copy_error`, for an image on which the model has `logits` (n, K).
    """
    margins: NDArray[np.float64] = (NEAR * error * logits.abs().amax(1)).double().cpu().numpy()
    return margins


def misled(bf16: Oracle, fp32: Oracle, attack: Attack, data: Dataset, norm: str) -> NDArray[np.bool_]:
    """At which clean images (n,) the gradient of the margin in bf16 points elsewhere than in fp32, as `attack` asks.

    Never where the model has no gradient in fp32 either.
    """
    attack = replace(attack, loss="cw")
    found = []
    for at, count in _passes(data, bf16.slots):
        x, y = data.batch(at)
        region = around(norm, x, torch.zeros(len(y), dtype=torch.float64, device=y.device))
        p = Problem(region, y, torch.full_like(y, -1), torch.zeros_like(y))
        one, other = (oracle.answer(attack, p, x).gradient.flatten(1) for oracle in (bf16, fp32))
        alike = F.cosine_similarity(_scaled(one), _scaled(other)) >= ALIKE
        found.append((~alike & other.any(1))[:count])
    elsewhere: NDArray[np.bool_] = torch.cat(found).cpu().numpy() if found else np.zeros(0, dtype=bool)
    return elsewhere


def _scaled(g: Tensor) -> Tensor:
    return g / g.abs().amax(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)


def _passes(data: Dataset, slots: int) -> Iterator[tuple[Tensor, int]]:
    """Row numbers (slots,) of each pass over all images, the last of which begins again, and how many are new."""
    for start in range(0, len(data), slots):
        rows = torch.arange(start, start + slots, device=data.device) % len(data)
        yield rows, min(slots, len(data) - start)
