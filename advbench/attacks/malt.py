"""The order of classes of MALT: Melamed et al. 2024, arXiv:2407.02240.

The wrong classes c of an image are ordered by (z_y - z_c) / ||grad (z_y - z_c)||_q at the clean image, the least first:
the distance to c's boundary, were the model linear. q is the dual of the norm. Only the 100 largest logits take part.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from advbench.engine.attack import Attack, Problem, Samples
from advbench.engine.losses import likeliest
from advbench.engine.oracle import Oracle
from advbench.threat import around

CANDIDATES = 100  # of the wrong classes with the largest logits
_TINY = 1e-12


def nearest_classes(attack: Attack, oracle: Oracle, samples: Samples, norm: str, n: int) -> Tensor:
    """The n wrong classes (m, n) of the samples that come first in MALT's order; all K - 1 if n is larger.

    A forward and a backward pass of `oracle.slots` rows for each of the candidates.
    """
    towards = replace(attack, loss="cw")  # z_c - z_y
    candidates = likeliest(samples.logits, samples.y, CANDIDATES)  # (m, R)
    found = []
    for some in torch.arange(len(samples.y), device=samples.y.device).split(oracle.slots):
        rows = some[torch.arange(oracle.slots, device=some.device) % len(some)]  # fills the last pass
        region, y, classes = around(norm, samples.x(rows), samples.eps[rows]), samples.y[rows], candidates[rows]
        distances = []
        for target in classes.unbind(1):
            a = oracle.answer(towards, Problem(region, y, target, torch.zeros_like(y)), region.x, "gradient")
            distances.append(-a.value / region.dual(a.gradient).clamp_min(_TINY))
        nearest = torch.stack(distances, 1).argsort(dim=1, stable=True)[:, :n]
        found.append(classes.gather(1, nearest)[: len(some)])
    return torch.cat(found)
