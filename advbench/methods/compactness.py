"""Local and global compactness (ADR): Bui et al., ECCV 2020, arXiv:2007.05123. The authors' code was read.

L = L_base + w_lc LC + w_ls LS + w_gc GC + w_gs GS + w_conf CONF
z = features(x), p = softmax f(x), no gradient flows through [.]

LC   = mean_i mean_d |[z(x_i)] - z(x'_i)|             local compactness of the features
LS   = mean_i CE([p(x_i)], p(x'_i))                   local smoothness of the predictions
GC   = mean_ij W_ij mean_d |[z(x_i)] - z(x'_j)|       a class's features close together, other classes' apart
GS   = mean_ij W_ij CE([p(x_i)], p(x'_j))             the same for the predictions
CONF = mean_i H(p(x'_i))                              confident predictions ("clustering")
W_ij = 1 where y_i = y_j, else 1 - 1 / 0.99

x' comes from the attack of the base (adversarial training or TRADES), whose objective does not contain these terms.
The base of adversarial training is CE(f(x'), y). The released code has clean cross-entropy in it: the authors' first
(TensorFlow) CE(f(x), y) / 2 + CE(f(x'), y) / 2, their second (PyTorch) the sum of both. Compare with the matching base:
the same setting, and the weights of the terms 0. All w are 1 in their scripts; the first release's README has w_gs = 0.

The preset `paper` is the first release's script: a ResNet on CIFAR-10, 90,000 updates, which are 230 epochs (biases and
BatchNorm do not decay there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench import ranks
from advbench.errors import UserError
from advbench.methods.base import Method, Nets, Objective, Setup
from advbench.methods.terms import check_kl_start, kl, kl_objective
from advbench.recipe import Recipe
from advbench.recipe.fields import NotNegative, Share

OTHER_CLASS = 0.99  # W_ij is 1 - 1 / OTHER_CLASS for images of different classes
MAX_NORM_GROWTH = 2.0  # since half of the training: on digits without BatchNorm AT reaches 1.3, LC alone 2.1 to 3.7

ENTRIES: dict[str, dict[str, Any]] = {
    "compactness": {
        "make": "Compactness",
        "summary": "AT with features pulled to the clean image's and to their class (ADR, Bui et al. 2020)",
        "paper": "Improving Adversarial Robustness by Enforcing Local and Global Compactness",
        "arxiv": "2007.05123",
        "year": 2020,
        "claim": "more robust than AT at equal clean accuracy, on MNIST and CIFAR-10, under PGD and AutoAttack",
        "cost": 1.05,
        "cautions": [
            "the released base has a clean CE term, which alone costs 4 to 5 points under AutoAttack: method.natural, "
            "method.natural_share",
            "without BatchNorm the feature norm may grow without bound: see feature_norm and norm_alarm",
        ],
        "presets": {
            "paper": {
                "epochs": 230,
                "batch_size": 128,
                "label_smoothing": 0.0,
                "method.natural_share": 0.5,
                "method.lc": 1.0,
                "method.ls": 1.0,
                "method.gc": 1.0,
                "method.gs": 1.0,
                "method.conf": 1.0,
                "inner.steps": 10,
                "inner.rel_step": 0.25,
                "inner.init": "uniform",
                "inner.bn_mode": "train",
                "inner.warmup": 0.0,
                "optim.lr": 0.1,
                "optim.weight_decay": 2e-4,
                "schedule.name": "piecewise",
                "schedule.milestones": [0.4444444444, 0.6666666667],  # after 40,000 and 60,000 of 90,000 updates
                "schedule.factor": 0.1,
                "average.name": "none",
                "validation.fraction": 0.0,
                "validation.select": "last",
            },
        },
    },
    "compactness-trades": {
        "make": "Compactness",
        "set": {"base": "trades"},
        "summary": "TRADES with features pulled to the clean image's and to their class (ADR, Bui et al. 2020)",
        "paper": "Improving Adversarial Robustness by Enforcing Local and Global Compactness",
        "arxiv": "2007.05123",
        "year": 2020,
        "claim": "more robust than TRADES",
        "cost": 1.18,
        "cautions": ["without BatchNorm the feature norm may grow without bound: see feature_norm and norm_alarm"],
        "recipe": {"inner.init": "gauss", "inner.rel_step": 0.2258},
    },
}


class Reference(nn.Module):
    """Keeps `norm`, the mean feature norm of the first batch after half of the training; 0 before that batch.

    The norm of the first batch of all says nothing: how far features grow until they are learned depends on the
    initial weights.
    """

    norm: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norm", torch.zeros(()))

    def growth(self, norm: Tensor, progress: float) -> Tensor:
        """The ratio of `norm` (a scalar) to the one at half of the training; 1 in the first half.

        A run that goes on for more epochs may be in its first half again.
        """
        if progress < 0.5:
            self.norm = torch.zeros_like(self.norm)
            return torch.ones_like(norm)
        self.norm = torch.where(self.norm > 0, self.norm, norm)
        return norm / self.norm.clamp_min(1e-12)


@dataclass(frozen=True, kw_only=True)
class Compactness(Method):
    """Compactness, on top of adversarial training or TRADES. With all weights 0 the result is the base, bit for bit.

    - `lc`, `ls`, `gc`, `conf`: weight of the term of this name.
    - `gs`: weight of GS; 0 as in the first release's README.
    - `base`: adversarial training ("at") or TRADES.
    - `natural`: add CE(f(x), y) to the base "at", as the second release does.
    - `natural_share`: the base "at" is (1 - natural_share) CE(f(x'), y) + natural_share CE(f(x), y); 0.5 in the first
      release.
    - `beta`: weight of the KL in the base TRADES.

    metrics.jsonl gets the quantities of `_note`, among them `norm_alarm`, the share of batches whose feature norm is
    more than twice the one at half of the training.
    """

    lc: NotNegative = 1.0
    ls: NotNegative = 1.0
    gc: NotNegative = 1.0
    gs: NotNegative = 0.0
    conf: NotNegative = 1.0
    base: Literal["at", "trades"] = "at"
    natural: bool = False
    natural_share: Share = 0.0
    beta: NotNegative = 6.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",)

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        if self.base == "trades":
            check_kl_start(recipe)
        if ranks.world() > 1 and (self.gc or self.gs):
            raise UserError("gc and gs compare all pairs of a batch: train with one process, or set method.gc=0")
        for name in ("natural", "natural_share"):
            if getattr(self, name) and self.base == "trades":
                raise UserError(
                    f"method.{name} is for the base at: the base trades has the clean cross-entropy already"
                )
        if self.natural and self.natural_share:
            raise UserError("method.natural adds the clean cross-entropy, natural_share divides the weight: set one")

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        return {"reference": Reference()}

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        return kl_objective(nets.f, x) if self.base == "trades" else super().inner(nets, x, y)

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        weights = {"lc": self.lc, "ls": self.ls, "gc": self.gc, "gs": self.gs, "conf": self.conf}
        weights = {name: weight for name, weight in weights.items() if weight}
        attacked, natural = (1.0, 1.0) if self.natural else (1 - self.natural_share, self.natural_share)
        learns_clean = natural > 0 or self.base == "trades"  # whether the clean images get gradients
        if not weights and not learns_clean:
            return super().outer(nets, x, x_adv, y)
        if learns_clean:
            z, clean = _outputs(nets, x)
        z_adv, adversarial = _outputs(nets, x_adv)
        if not learns_clean:  # last: autocast caches the weights it casts first, and those need gradients
            with torch.no_grad():
                z, clean = _outputs(nets, x)
        if self.base == "trades":
            terms = {"ce": nets.ce(clean, y), "kl": self.beta * kl(clean, adversarial).mean()}
        else:
            terms = {"ce": attacked * nets.ce(adversarial, y)}
            if natural:
                terms["natural_ce"] = natural * nets.ce(clean, y)
        constant = z.detach().float(), clean.detach().float()
        found = compact(*constant, z_adv.float(), adversarial.float(), y)
        self._note(nets, constant[0], z_adv.detach().float(), y, found["conf"])
        return terms | {name: weight * found[name] for name, weight in weights.items()}

    def _note(self, nets: Nets, z: Tensor, z_adv: Tensor, y: Tensor, entropy: Tensor) -> None:
        """Note ||z||, its alarm, ||z - z'|| / ||z||, ||z - z'|| over the distance of classes, and the entropy."""
        norm = z.norm(dim=1)
        distance = (z - z_adv).norm(dim=1)
        between = torch.cdist(z, z)
        other = (y[:, None] != y).to(z.dtype)
        apart = (between * other).sum() / other.sum().clamp_min(1)
        nets.note("feature_norm", norm.mean())
        reference = nets.parts["reference"]
        assert isinstance(reference, Reference)
        nets.note("norm_alarm", (reference.growth(norm.mean(), nets.progress) > MAX_NORM_GROWTH).float())
        nets.note("divergence", (distance / norm.clamp_min(1e-12)).mean())
        nets.note("moved_to_interclass", distance.mean() / apart.clamp_min(1e-12))
        nets.note("entropy", entropy)


def _outputs(nets: Nets, x: Tensor) -> tuple[Tensor, Tensor]:
    """The features (B, D) and logits (B, K) of images x."""
    return nets.f.features_and_logits(x)


def compact(z: Tensor, logits: Tensor, z_adv: Tensor, logits_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
    """LC, LS, GC, GS and CONF (scalars), by their lower-case names, for features (B, D) and logits (B, K)."""
    p, log_q = logits.softmax(1), functional.log_softmax(logits_adv, 1)
    w = torch.where(y[:, None] == y, 1.0, 1 - 1 / OTHER_CLASS)
    pairs = torch.cdist(z, z_adv, p=1) / z.shape[1]
    entropies = -p @ log_q.T
    return {
        "lc": (z - z_adv).abs().mean(),
        "ls": entropies.diagonal().mean(),
        "gc": (w * pairs).mean(),
        "gs": (w * entropies).mean(),
        "conf": -(log_q.exp() * log_q).sum(1).mean(),
    }
