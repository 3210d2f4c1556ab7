"""Transfer attack: Papernot et al. 2016, arXiv:1605.07277.

Points are found with the gradients of a source model. The evaluated model judges the point of every step, which makes
this the strongest form of the attack that uses only the model's decisions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advbench.attacks.apgd import APGD
from advbench.checkpoint import load_model
from advbench.engine.attack import Answer, Asks, Attack, Context, Problem, prepared
from advbench.engine.losses import wrong
from advbench.engine.oracle import Oracle
from advbench.engine.rejection import never_rejecting
from advbench.errors import UserError
from advbench.models.black_box import is_black_box

ENTRIES: dict[str, dict[str, Any]] = {
    "transfer": {
        "make": "Transfer",
        "set": {"name": "transfer", "loss": "dlr"},
        "members": ["apgd-dlr"],
        "summary": "Auto-PGD on another model (--set source=RUN), judged on this one (Papernot et al. 2016)",
        "example": "advbench evaluate --attack transfer --set source=runs/other --eps 8/255",
        "proof": {
            "quick": {"steps": 8, "source": "-"},
            "settings": {"source": "-"},
            "needs": {"l2 bound": 1.01, "l1": 1.1},
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class Transfer(APGD):
    """Auto-PGD on another model.

    `source`: the spec of the model that gives the gradients: a run folder, or any that --model takes. `source_sha256`:
    the hash of its weights and of its code from outside, filled in, which distinguishes sources in records.
    """

    version: ClassVar[int] = 2

    source: str = ""
    source_sha256: str = ""
    source_net: nn.Module | None = prepared()

    def prepare(self, context: Context) -> Attack:
        """This attack with the source loaded. UserError without a source, if that fails, or if its weights are not
        those of `source_sha256`."""
        if not self.source:
            raise UserError(f"{self.name} needs the model on which it searches for points: --set source=MODEL")
        data = context.data
        loaded = load_model(self.source, dataset=data, device=data.device)
        if is_black_box(loaded.net):
            raise UserError(f"{self.name}: the source {self.source} is a black box: it has no gradient to search with")
        digest = loaded.weights_sha256
        if loaded.code_sha256 is not None:
            digest = hashlib.sha256(f"{digest} {loaded.code_sha256}".encode()).hexdigest()
        if self.source_sha256 not in ("", digest):
            raise UserError(
                f"{self.name}: the source {self.source} has the weights {digest[:12]}..., not "
                f"{self.source_sha256[:12]}...: name the one that was meant by --set source=MODEL"
            )
        net = loaded.net.eval().requires_grad_(False)
        return replace(self.with_goals(context), source=loaded.spec, source_sha256=digest, source_net=net)

    def follows_gradient(self) -> bool:
        return False

    def passes(self, classes: int) -> tuple[int, int]:
        forwards, backwards = super().passes(classes)
        return forwards + self.queries(classes), backwards  # the source's, and those of the model

    def oracle(self, oracle: Oracle, seed: int) -> Oracle:
        assert self.source_net is not None
        return SourceOracle(
            oracle.net, self.source_net, slots=oracle.slots, random=oracle.random, rejects=oracle.rejects
        )


class SourceOracle(Oracle):
    """An oracle whose objective and gradients come from `source`; logits, hits and verification come from `net`.

    `source` has no logit for a rejection, even if `net` has one.
    """

    def __init__(
        self, net: nn.Module, source: nn.Module, *, slots: int, random: bool = False, rejects: bool = False
    ) -> None:
        super().__init__(net, source, slots=slots, random=random, rejects=rejects)

    def read(self, p: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
        logits, _ = super().read(p, query)
        logits = never_rejecting(logits) if self.rejects else logits
        return logits, logits

    def answer(
        self, attack: Attack, p: Problem, query: Tensor, asks: Asks | None = None, handicap: Tensor | None = None
    ) -> Answer:
        answer = super().answer(attack, p, query, asks, handicap)
        with torch.no_grad():
            self.forwards += len(query)
            answer.logits = self.judged(self.net(query).float(), p.y)
            answer.wrong = wrong(answer.logits, p.y)
        return answer
