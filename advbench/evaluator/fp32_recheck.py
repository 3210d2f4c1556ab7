"""Who survives a search in bf16 is attacked once more in fp32: APGD-CE, and APGD-T on the 3 nearest targets.

A search copy in bf16 may hide directions that the model itself has: its gradients are those of a coarser function. The
two attacks keep their names, and with them their random starts, so that they do what an evaluation all in fp32 does.
Square, which follows no gradient, loses progress that is finer than bf16's steps: whom it brought near, `Runner.curve`
lets it attack once more in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

from advbench.attacks.apgd import APGD
from advbench.engine.attack import Attack
from advbench.record import AttackRef

SET = "survivors-fp32"
TARGETS = 3


def recheck_attacks(asked: Sequence[Attack], *, norm: str, classes: int) -> tuple[list[Attack], list[AttackRef]]:
    """The attacks that follow `asked`, and what a record says of them; with the most passes and the straight-through
    gradients that any of `asked` has."""
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
    """Whether `asked` has targeted APGD itself, so that a second look makes it no stronger than it is in fp32."""
    return any(isinstance(attack, APGD) and attack.name == "apgd-t" for attack in asked)
