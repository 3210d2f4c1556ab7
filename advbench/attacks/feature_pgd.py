"""Pulls features to the centre of another class: an adaptive attack on defences that shape the feature space.

x' minimises ||phi(x') - c_t||_2^2 in the ball by projected gradient descent, phi the penultimate layer and c_t the mean
feature of the clean images of class t (Sabour et al. 2016, arXiv:1511.05122, with a centre in place of a guide image).
It works where losses on the logits give no gradient, such as on networks trained with a centre loss, whose logits
saturate. The centres are computed from the evaluated images, so a verdict depends on the whole evaluated set.
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
from advbench.recipe.fields import Count, NotNegative, Size

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
    """PGD towards the centres of wrong classes.

    `n_targets`: how many of the likeliest wrong classes, an item for each. `target`: a class in their place; its own
    images are pulled to the centre of their likeliest wrong class. `loss`: not used.
    """

    steps: Count = 40
    rel_step: NotNegative = 0.1
    n_targets: Size = 3
    centres: Tensor | None = prepared()

    def prepare(self, context: Context) -> Attack:
        """This attack with the class centres of the images. UserError for a model without features (not the zoo's)."""
        net = context.loaded.net
        if not isinstance(net, Model):
            raise UserError(f"{self.name} reads features, which this model does not show: it must be one of the zoo's")
        return replace(self.with_goals(context), centres=class_centres(net, context.data))

    def oracle(self, oracle: Oracle, seed: int) -> Oracle:
        assert self.centres is not None
        return FeatureOracle(oracle, self.centres)

    def target_classes(self, logits: Tensor, y: Tensor, goals: Tensor | None = None) -> Tensor:
        classes = super().target_classes(logits, y, goals)
        return torch.where(classes < 0, likeliest(logits, y, 1), classes)

    def needs_small_logits(self) -> bool:
        return False  # it climbs no loss of logits

    def objective(self, p: Problem, read: Tensor) -> Tensor:
        return -(read - p.reference).square().sum(1)


class FeatureOracle(Oracle):
    """An oracle that reads features (S, D) for the objective. An item's reference is the centre of its target class."""

    def __init__(self, oracle: Oracle, centres: Tensor) -> None:
        super().__init__(oracle.net, oracle.search, slots=oracle.slots, random=oracle.random, rejects=oracle.rejects)
        self.centres = centres

    def reference(self, samples: Samples, row: Tensor, target: Tensor) -> Tensor:
        return self.centres.to(target.device)[target.clamp_min(0)]

    def read(self, p: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.search.features_and_logits(query)  # type: ignore[operator]
        return logits.float(), features.float()


def class_centres(net: Model, data: Dataset) -> Tensor:
    """The mean features (K, D) of the clean images of each class; 0 for a class without images."""
    with torch.no_grad():
        parts = torch.arange(len(data), device=data.device).split(BATCH)
        features = torch.cat([net.features(data.batch(part)[0]) for part in parts]).double()
    member = nn.functional.one_hot(data.labels, data.num_classes).double()
    return (member.T @ features / member.sum(0).clamp_min(1)[:, None]).float()
