"""Free adversarial training: Shafahi et al. 2019, arXiv:1904.12843, algorithm 1.

Each batch is replayed m times. One backward pass gives both gradients: the weights descend CE(f(x + d), y), and
d <- P(d + eps sign grad_d CE(f(x + d), y)). P keeps d in the ball and knows no x: the next batch starts from the last d
instead of a new start. Where x + d leaves [0, 1], it is projected for the net alone.

The preset `paper` is the released training of WRN-32-10 on CIFAR-10: 80,000 updates, which are 26 epochs at m = 8.
The released code's rate of 0.1 is for a ResNet with BatchNorm on CIFAR-10, with batches of 128. The shipped recipes of
MNIST and Fashion-MNIST have a lower rate than for other methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advbench.errors import UserError
from advbench.methods.base import Method, Nets, Setup, Tools
from advbench.recipe.fields import Count
from advbench.threat import Region

ENTRIES: dict[str, dict[str, Any]] = {
    "free-at": {
        "make": "FreeAT",
        "summary": "one backward pass for weights and perturbation, m replays of a batch (Shafahi et al. 2019)",
        "paper": "Adversarial Training for Free!",
        "arxiv": "1904.12843",
        "year": 2019,
        "claim": "robustness near PGD training at the cost of standard training, with epochs / m epochs",
        "cost": 0.73,
        "cautions": [
            "an epoch is m updates for each batch: divide the epochs by m for the paper's cost",
            "m updates in a row on a small batch: plain nets at other methods' rate can stay at chance, lower optim.lr",
        ],
        "recipe": {"inner.steps": 1, "inner.rel_step": 1.0},
        "presets": {
            "paper": {
                "epochs": 26,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "method.m": 8,
                "inner.steps": 1,
                "inner.rel_step": 1.0,
                "inner.warmup": 0.0,
                "optim.lr": 0.1,
                "optim.weight_decay": 2e-4,
                "schedule.name": "piecewise",
                "schedule.milestones": [0.5, 0.75],
                "schedule.factor": 0.1,
                "average.name": "none",
                "validation.fraction": 0.0,
                "validation.select": "last",
            },
        },
    },
}


class Perturbation(nn.Module):
    """The perturbation `d` (B, C, H, W), kept from batch to batch and saved with the run."""

    d: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("d", torch.zeros(shape))


@dataclass(frozen=True, kw_only=True)
class FreeAT(Method):
    """Free adversarial training.

    `m`: replays of each batch. The step size of d is the recipe's `inner.rel_step`, 1 in the paper.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    unused: ClassVar[tuple[str, ...]] = ("inner.steps", "inner.init", "inner.bn_mode")

    m: Count = 8

    def __post_init__(self) -> None:
        if self.m < 1:
            raise UserError(f"method.m is {self.m}: a batch is used at least once")

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        return {"perturbation": Perturbation((setup.batch_size, *setup.shape))}

    def step(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> dict[str, Tensor]:
        perturbation = nets.parts["perturbation"]
        assert isinstance(perturbation, Perturbation)
        ball, alpha = tools.region(x), tools.step_size()
        terms: dict[str, Tensor] = {}
        for _ in range(self.m):
            z = ball.project(x + perturbation.d).requires_grad_()
            terms = tools.update(lambda z=z: {"ce": nets.ce(nets.f(z), y)})  # type: ignore[misc]
            assert z.grad is not None
            perturbation.d = _in_ball(perturbation.d + alpha * ball.steepest(z.grad), ball)
        return terms


def _in_ball(d: Tensor, ball: Region) -> Tensor:
    """The nearest perturbation to d (B, C, H, W) of at most eps, whatever the images."""
    if ball.norm == "linf":
        return d.clamp(-ball.e, ball.e)
    size = ball.size(d).view(-1, 1, 1, 1).clamp_min(torch.finfo(d.dtype).tiny)  # of d = 0: at eps 0 no division by 0
    return d * (ball.e / size).clamp_max(1)
