"""Features pulled to the centre of another class: an adaptive attack on what shapes the feature space.

x' minimises ||phi(x') - c_t||_2^2 in the ball by projected gradient descent, phi the penultimate layer and c_t the mean
feature of the clean images of class t (Sabour et al. 2016, arXiv:1511.05122, with a centre in place of a guide image).
It goes where losses on the logits see nothing: nets trained with a centre loss, say, whose logits saturate. The
centres are those of the images that are evaluated, so that a verdict is one of the whole set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from advbench.attacks.pgd import PGD
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Context, Problem, Samples, prepared
from advbench.engine.losses import likeliest
from advbench.engine.oracle import Oracle
from advbench.errors import UserError
from advbench.models.base import Model

ENTRIES = {
    "feature-pgd": {
        "make": "FeaturePGD",
        "set": {"name": "feature-pgd"},
        "members": ["pgd"],
        "summary": "features pulled to the mean ones of 3 wrong classes, 40 steps (after Sabour et al. 2016)",
        "proof": {"needs": {"l2 free": 1.03, "l2 bound": 1.1, "l1 bound": 2, "fourier-linf": 1.01}},
    },
}
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class FeaturePGD(PGD):
    """As PGD, but that `loss` says nothing: towards the centres of the `n_targets` likeliest wrong classes, or of
    `target`, whose own images are drawn to their likeliest wrong class."""

    steps: int = 40
    rel_step: float = 0.1
    n_targets: int = 3
    centres: Tensor | None = prepared()

    def prepare(self, context: Context) -> Attack:
        """With the centres of the images. Raises UserError for a model that does not show its features."""
        net = context.loaded.net
        if not isinstance(net, Model):
            raise UserError(f"{self.name} reads features, which this model does not show: it must be one of the zoo's")
        return replace(self, centres=class_centres(net, context.data))

    def oracle(self, oracle: Oracle, seed: int) -> Oracle:
        assert self.centres is not None
        return FeatureOracle(oracle, self.centres)

    def targets(self, logits: Tensor, y: Tensor) -> Tensor:
        aimed = super().targets(logits, y)
        return torch.where(aimed < 0, likeliest(logits, y, 1), aimed)

    def objective(self, p: Problem, read: Tensor) -> Tensor:
        return -(read - p.reference).square().sum(1)


class FeatureOracle(Oracle):
    """As `oracle`, but that it reads features (S, D); an item compares with the centre of its target."""

    def __init__(self, oracle: Oracle, centres: Tensor) -> None:
        super().__init__(oracle.net, oracle.search, slots=oracle.slots, random=oracle.random)
        self.centres = centres

    def reference(self, samples: Samples, row: Tensor, target: Tensor) -> Tensor:
        return self.centres.to(target.device)[target.clamp_min(0)]

    def read(self, p: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.search.features_and_logits(query)  # type: ignore[operator]
        return logits.float(), features.float()


def class_centres(net: Model, data: Dataset) -> Tensor:
    """The mean features (K, D) of the clean images of each class; 0 for a class without any."""
    with torch.no_grad():
        parts = torch.arange(len(data), device=data.device).split(BATCH)
        features = torch.cat([net.features(data.batch(part)[0]) for part in parts]).double()
    member = nn.functional.one_hot(data.labels, data.num_classes).double()
    return (member.T @ features / member.sum(0).clamp_min(1)[:, None]).float()
