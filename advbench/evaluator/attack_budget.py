"""`--attack-budget PASSES`: so many forward and backward passes on an image, at each eps, whatever the attack.

Every attack takes as many steps as fit, its restarts and targets stay; several attacks share the passes in proportion
to those that they usually make. So attacks are compared at equal cost, as AttackBench does (Cina et al. 2025,
arXiv:2404.19460). The pass that verifies a hit comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence

from advbench.engine.attack import Attack
from advbench.errors import UserError
from advbench.evaluator.settings import Settings
from advbench.registry import find


def within_budget(attacks: Sequence[Attack], settings: Settings, classes: int, abstain: str | None) -> list[Attack]:
    """`attacks`, prepared, with the numbers of steps that the budget of `settings` allows; as they are without one.

    `abstain`: of the model, None if it never rejects an input. Raises UserError for a budget that is too small, and for
    attacks and settings that have no form with one.
    """
    budget = settings.attack_budget
    if budget is None:
        return list(attacks)
    for name in settings.attacks:
        if isinstance(name, str) and find("attacks", name).about.get("escalates"):
            raise UserError(f"{name} decides by itself how many passes it makes: leave out --attack-budget")
    decided = {one.main_count for one in attacks}
    if given := [name for name in settings.attack_settings if name in decided]:
        raise UserError(f"--attack-budget decides {given[0]}: leave out --set {given[0]}")
    if abstain:
        raise UserError("--attack-budget has no form for models that may reject: leave out --abstain")
    if settings.precision == "bf16":
        raise UserError("--precision bf16 attacks once more in fp32, beyond --attack-budget: choose fp32")
    usual = [sum(one.passes(classes)) for one in attacks]
    shortest = [sum(one.with_count(1).passes(classes)) for one in attacks]
    least = max(-(-one * sum(usual) // own) for one, own in zip(shortest, usual, strict=True))
    if budget < least:
        names = "+".join(one.name for one in attacks)
        raise UserError(f"--attack-budget {budget} is less than one step of {names} takes: choose at least {least}")
    return [one.for_budget(budget * own // sum(usual), classes) for one, own in zip(attacks, usual, strict=True)]
