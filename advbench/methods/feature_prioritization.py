"""Feature prioritisation and regularisation: Liu and JaJa, IJCAI 2019, arXiv:1810.02424.

A reconstruction from the abstract, on top of adversarial training: attention gives robust features more weight, and
an L2 penalty makes the features of clean and adversarial images similar.

min E[ CE(f(x'), y) + lambda ||z(x) - z(x')||^2 ],  x' = argmax_{x' in B(x, eps)} CE(f(x'), y)

z are the features that the classifier receives: the net's own, and beside them the mean of local features, weighted by
the attention of `models/attention.py`, unless that is off. Clean and adversarial images form one train-mode batch, and
the gradient flows through both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advbench.methods.base import Method, Nets
from advbench.models import wrap
from advbench.models.base import Model
from advbench.recipe.fields import Count, NotNegative

ENTRIES: dict[str, dict[str, Any]] = {
    "feature-prioritization": {
        "make": "FeaturePrioritization",
        "summary": "attention over local features, and a penalty on their change under attack (Liu and JaJa 2019)",
        "paper": "Feature Prioritization and Regularization Improve Standard Accuracy and Adversarial Robustness",
        "arxiv": "1810.02424",
        "year": 2019,
        "claim": "better clean and robust accuracy than adversarial training",
        "cost": 1.09,
        "cautions": [
            "a reconstruction from the abstract: the form of the attention, its layer and lambda are our choice",
            "without BatchNorm a large lambda shrinks all features: on digits 1 costs accuracy, 0.1 does not",
            "small plain nets already read every position, so that attention adds little: on digits it is as robust as "
            "AT, and on MNIST it stays near the plain mean (`advbench analyze salience`)",
            "no AutoAttack number was ever published; a saturated softmax attention would mask gradients",
        ],
    },
}


@dataclass(frozen=True, kw_only=True)
class FeaturePrioritization(Method):
    """Attention and a penalty. Without attention and with lambda 0 it is adversarial training, bit for bit.

    `attention`: whether it is used; either part alone is an ablation. `width`: units of the attention. `lam`: lambda,
    the weight of the penalty; 0.01 to 1 here.
    """

    attention: bool = True
    width: Count = 64
    lam: NotNegative = 0.01

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features", "head") if self.lam or self.attention else ()

    def wrap(self, f: Model, seed: int) -> Model:
        return wrap(f, "attention", seed=seed, width=self.width) if self.attention else f

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        if not self.lam:
            return super().outer(nets, x, x_adv, y)
        clean, adversarial = nets.f.features(torch.cat([x, x_adv])).chunk(2)
        distance = (clean.float() - adversarial.float()).square().sum(1).mean()
        nets.note("feature_distance", distance)
        return {"ce": nets.ce(nets.f.head(adversarial), y), "penalty": self.lam * distance}
