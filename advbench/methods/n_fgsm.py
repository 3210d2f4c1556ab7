"""N-FGSM: de Jorge et al. 2022, arXiv:2202.01181, algorithm 1.

min_f E[CE(f(x'), y)],  x' = x + d + alpha sign grad CE(f(x + d), y),  d ~ U(-k eps, k eps),  alpha = eps

x' is clipped to [0, 1] but not to the ball: more noise without that clipping prevents catastrophic overfitting.

The preset `paper` is the released training on CIFAR-10 and CIFAR-100 (SVHN has other settings there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from advbench.methods.base import Method, Nets, Tools
from advbench.methods.terms import ce
from advbench.recipe.fields import NotNegative

ENTRIES: dict[str, dict[str, Any]] = {
    "n-fgsm": {
        "make": "NFGSM",
        "summary": "one FGSM step from noise twice the ball's size, not clipped (de Jorge et al. 2022)",
        "paper": "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training",
        "arxiv": "2202.01181",
        "year": 2022,
        "claim": "no catastrophic overfitting: CIFAR-10, ResNet-18, 8/255: 47.8 % under AutoAttack (FastAT benchmark)",
        "cost": 0.18,
        "cautions": [
            "trains on points up to (k + 1) eps away from x",
            "k = 2 is for eps of some 8/255: at 0.3 it is noise of +-0.6, take k = 1 as the recipe of mnist does; "
            "less can overfit catastrophically",
        ],
        "recipe": {"inner.steps": 1, "inner.rel_step": 1.0},
        "presets": {
            "paper": {
                "epochs": 30,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "method.k": 2.0,
                "inner.steps": 1,
                "inner.rel_step": 1.0,
                "inner.init": "uniform",
                "inner.bn_mode": "train",
                "inner.warmup": 0.0,
                "optim.lr": 0.2,
                "optim.weight_decay": 5e-4,
                "schedule.name": "onecycle",
                "schedule.peak": 0.5,
                "average.name": "none",
                "validation.fraction": 0.0,
                "validation.select": "last",
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class NFGSM(Method):
    """N-FGSM.

    `k`: size of the noise / eps; 2 in the paper, too much for an eps of 0.3. The step size alpha is the recipe's
    `inner.rel_step` or `inner.step_size`.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    unused: ClassVar[tuple[str, ...]] = ("inner.steps", "inner.init")

    k: NotNegative = 2.0

    def perturb(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> Tensor:
        noisy = tools.region(x, self.k).sample(nets.key)
        g = tools.gradient(lambda z: ce(nets.f(z), y), noisy)
        return (noisy + tools.step_size() * g.sign()).clamp(0, 1)
