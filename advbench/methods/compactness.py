"""Local and global compactness (ADR): Bui et al., ECCV 2020, arXiv:2007.05123. Read in code.

L = L_base + w_lc LC + w_ls LS + w_gc GC + w_gs GS + w_conf CONF;  z = features(x), p = softmax f(x), [.] held

LC   = mean_i mean_d |[z(x_i)] - z(x'_i)|             features near those of the clean image
LS   = mean_i CE([p(x_i)], p(x'_i))                   and so the answers
GC   = mean_ij W_ij mean_d |[z(x_i)] - z(x'_j)|       features of a class together, others apart
GS   = mean_ij W_ij CE([p(x_i)], p(x'_j))
CONF = mean_i H(p(x'_i))                              sure answers ("clustering")
W_ij = 1 where y_i = y_j, else 1 - 1 / 0.99

x' comes from the base's own attack, that of adversarial training or of TRADES, and never sees these terms. The
released code adds CE(f(x), y) to the base of adversarial training, too: `natural`. Compare with the matching base.
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
from advbench.methods.terms import kl, kl_objective
from advbench.recipe import Recipe

SCALE = 0.99
ALARM = 30.0  # times the first feature norm: on digits, without BatchNorm, AT reaches 20 and LC alone 90

ENTRIES: dict[str, dict[str, Any]] = {
    "compactness": {
        "make": "Compactness",
        "summary": "AT with features drawn to the clean image's and to their class (ADR, Bui et al. 2020)",
        "paper": "Improving Adversarial Robustness by Enforcing Local and Global Compactness",
        "arxiv": "2007.05123",
        "year": 2020,
        "claim": "more robust than AT at equal clean accuracy, on MNIST and CIFAR-10, under PGD and AutoAttack",
        "cost": 1.05,
        "cautions": [
            "the released base has a clean CE term, which alone costs 4 to 5 points under AutoAttack: method.natural",
            "without BatchNorm the held side lets the feature norm run away: see feature_norm and norm_alarm",
        ],
    },
    "compactness-trades": {
        "make": "Compactness",
        "set": {"base": "trades"},
        "summary": "TRADES with features drawn to the clean image's and to their class (ADR, Bui et al. 2020)",
        "paper": "Improving Adversarial Robustness by Enforcing Local and Global Compactness",
        "arxiv": "2007.05123",
        "year": 2020,
        "claim": "more robust than TRADES",
        "cost": 1.18,
        "cautions": ["without BatchNorm the held side lets the feature norm run away: see feature_norm and norm_alarm"],
        "recipe": {"inner.init": "gauss", "inner.rel_step": 0.2258},
    },
}


class Reference(nn.Module):
    """`norm`: the mean feature norm of the first batch; 0 before."""

    norm: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norm", torch.zeros(()))

    def grown(self, norm: Tensor) -> Tensor:
        """`norm` (a scalar) over the first one."""
        self.norm = torch.where(self.norm > 0, self.norm, norm)
        return norm / self.norm.clamp_min(1e-12)


@dataclass(frozen=True, kw_only=True)
class Compactness(Method):
    """Weights of the terms, named as above; `gs` is off as published results are without it. `beta`: of TRADES.

    With all weights 0 it is the base, to the bit. Noted in metrics.jsonl: the mechanism, and `norm_alarm`, the share
    of batches whose feature norm is more than 30 times the first batch's.
    """

    lc: float = 1.0
    ls: float = 1.0
    gc: float = 1.0
    gs: float = 0.0
    conf: float = 1.0
    base: Literal["at", "trades"] = "at"
    natural: bool = False
    beta: float = 6.0

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        if ranks.world() > 1 and (self.gc or self.gs):
            raise UserError("gc and gs compare all pairs of a batch: train by one process, or set method.gc=0")
        if self.natural and self.base == "trades":
            raise UserError("method.natural is for the base at: that of trades has the clean cross-entropy already")

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        return {"reference": Reference()}

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        return kl_objective(nets.f, x) if self.base == "trades" else super().inner(nets, x, y)

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        weights = {"lc": self.lc, "ls": self.ls, "gc": self.gc, "gs": self.gs, "conf": self.conf}
        weights = {name: weight for name, weight in weights.items() if weight}
        taught = self.natural or self.base == "trades"  # whether clean images are
        if not weights and not taught:
            return super().outer(nets, x, x_adv, y)
        if taught:
            z, clean = _answer(nets, x)
        z_adv, adversarial = _answer(nets, x_adv)
        if not taught:  # last: autocast keeps weights as it first cast them, which must not be without gradient
            with torch.no_grad():
                z, clean = _answer(nets, x)
        if self.base == "trades":
            terms = {"ce": nets.ce(clean, y), "kl": self.beta * kl(clean, adversarial).mean()}
        else:
            terms = {"ce": nets.ce(adversarial, y)}
            if self.natural:
                terms["natural_ce"] = nets.ce(clean, y)
        held = z.detach().float(), clean.detach().float()
        found = compact(*held, z_adv.float(), adversarial.float(), y)
        self._note(nets, held[0], z_adv.detach().float(), y, found["conf"])
        return terms | {name: weight * found[name] for name, weight in weights.items()}

    def _note(self, nets: Nets, z: Tensor, z_adv: Tensor, y: Tensor, entropy: Tensor) -> None:
        """The mechanism: ||z||, the divergence ||z - z'|| / ||z||, its size against that of classes, the entropy."""
        norm = z.norm(dim=1)
        moved = (z - z_adv).norm(dim=1)
        between = torch.cdist(z, z)
        other = (y[:, None] != y).to(z.dtype)
        apart = (between * other).sum() / other.sum().clamp_min(1)
        nets.note("feature_norm", norm.mean())
        reference = nets.parts["reference"]
        assert isinstance(reference, Reference)
        nets.note("norm_alarm", (reference.grown(norm.mean()) > ALARM).float())
        nets.note("divergence", (moved / norm.clamp_min(1e-12)).mean())
        nets.note("moved_to_interclass", moved.mean() / apart.clamp_min(1e-12))
        nets.note("entropy", entropy)


def _answer(nets: Nets, x: Tensor) -> tuple[Tensor, Tensor]:
    z = nets.f.features(x)
    return z, nets.f.head(z)


def compact(z: Tensor, logits: Tensor, z_adv: Tensor, logits_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
    """LC, LS, GC, GS and CONF (scalars) by their names in lower case, of features (B, D) and logits (B, K)."""
    p, log_q = logits.softmax(1), functional.log_softmax(logits_adv, 1)
    w = torch.where(y[:, None] == y, 1.0, 1 - 1 / SCALE)
    pairs = torch.cdist(z, z_adv, p=1) / z.shape[1]
    answers = -p @ log_q.T
    return {
        "lc": (z - z_adv).abs().mean(),
        "ls": answers.diagonal().mean(),
        "gc": (w * pairs).mean(),
        "gs": (w * answers).mean(),
        "conf": -(log_q.exp() * log_q).sum(1).mean(),
    }
