"""Transfer: points found on another model, judged on this one (Papernot et al. 2016, arXiv:1605.07277).

The gradients are the source's; whether a point counts is asked of the model itself at every step, which is the
strongest form of the attack that still takes nothing but decisions from the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advbench.attacks.apgd import APGD
from advbench.attacks.engine import Answer, Asks, Attack, Problem
from advbench.attacks.losses import wrong
from advbench.attacks.oracle import Oracle
from advbench.checkpoint import load_model
from advbench.data.dataset import Dataset
from advbench.errors import UserError

ENTRIES: dict[str, dict[str, Any]] = {
    "transfer": {
        "make": "Transfer",
        "set": {"name": "transfer", "loss": "dlr"},
        "members": ["apgd-dlr"],
        "summary": "Auto-PGD on another model (--set source=RUN), judged on this one (Papernot et al. 2016)",
    },
}


@dataclass(frozen=True, kw_only=True)
class Transfer(APGD):
    """`source` is the spec of the model the gradients come from: whoever runs the attack loads it and answers with a
    `SourceOracle`. `source_sha256` is the hash of its weights, which `sourced` finds."""

    version: ClassVar[int] = 2

    source: str = ""
    source_sha256: str = ""

    def for_model(self, norm: str, classes: int) -> Attack:
        if not self.source:
            raise UserError(f"{self.name} needs the model that its points are made on: --set source=MODEL")
        return super().for_model(norm, classes)


class SourceOracle(Oracle):
    """Objective and gradients of `source`; logits, hits and verification of `net`."""

    def __init__(self, net: nn.Module, source: nn.Module, *, slots: int, random: bool = False) -> None:
        super().__init__(net, source, slots=slots, random=random)

    def answer(self, attack: Attack, p: Problem, query: Tensor, asks: Asks | None = None) -> Answer:
        answer = super().answer(attack, p, query, asks)
        with torch.no_grad():
            self.forwards += len(query)
            answer.logits = self.net(query).float()
            answer.wrong = wrong(answer.logits, p.y)
        return answer


def sourced(attack: Attack, data: Dataset) -> Attack:
    """`attack`, or for a transfer attack one that knows its source's weights by their hash, so that a record tells two
    sources apart. Raises UserError when the source cannot be loaded, or has other weights than the attack names."""
    if not isinstance(attack, Transfer):
        return attack
    found = load_model(attack.source, dataset=data).weights_sha256
    if attack.source_sha256 not in ("", found):
        raise UserError(
            f"{attack.name}: the source {attack.source} has the weights {found[:12]}..., not "
            f"{attack.source_sha256[:12]}...: name the one that was meant by --set source=MODEL"
        )
    return replace(attack, source_sha256=found)


def oracle_for(attack: Attack, oracle: Oracle, data: Dataset) -> Oracle:
    """`oracle`, or for a transfer attack one that answers with its source, loaded for `data` and its device.

    Raises UserError when the source cannot be loaded or does not fit the data.
    """
    if not isinstance(attack, Transfer):
        return oracle
    source = load_model(attack.source, dataset=data, device=data.device).net
    return SourceOracle(oracle.net, source.eval().requires_grad_(False), slots=oracle.slots, random=oracle.random)
