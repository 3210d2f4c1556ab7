"""The recheck in fp32 of the images that stand after a search in bf16: APGD-CE, and APGD-T on the 3 nearest targets.

A search copy in bf16 is a coarser function than the model, and its gradients may miss adversarial directions that the
model has. The two attacks keep their names and thus their random starts, so that they do exactly what they do in an
evaluation all in fp32.

Square follows no gradient, but bf16 rounds away small progress. `Runner.curve` therefore repeats such attacks in fp32
on the images that they brought near to failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from advbench.attacks.apgd import APGD
from advbench.engine.attack import Attack
from advbench.record import RECHECK_SET, AttackRef

SET = RECHECK_SET
TARGETS = 3


def recheck_attacks(asked: Sequence[Attack], *, norm: str, classes: int) -> tuple[list[Attack], list[AttackRef]]:
    """The attacks of the recheck that follows `asked`, and their references in the record.

    They take the largest `eot` of `asked`, and straight-through gradients if any of `asked` does.
    """
    l1 = norm == "l1"
    eot = max(attack.eot for attack in asked)
    through = any(attack.straight_through for attack in asked)
    made: list[Attack] = [
        APGD(name=name, loss=loss, n_targets=targets, larger_eps=l1, eot=eot, straight_through=through).for_model(
            norm, classes
        )
        for name, loss, targets in (("apgd-ce", "ce", 0), ("apgd-t", "dlr", TARGETS))
    ]
    refs = [
        AttackRef(name=one.name, version=str(one.version), settings={**one.settings(), "set": SET, "precision": "fp32"})
        for one in made
    ]
    return made, refs


def covered(asked: Sequence[Attack]) -> bool:
    """Whether `asked` holds APGD-T itself, so that the recheck does not make it stronger than it is all in fp32."""
    return any(isinstance(attack, APGD) and attack.name == "apgd-t" for attack in asked)
