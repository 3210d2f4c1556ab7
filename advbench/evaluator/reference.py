"""`--engine reference`: AutoAttack by its own package, for those who doubt ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

from torch import Tensor, nn

from advbench.engine.attack import Attack
from advbench.engine.whole_batch import WholeBatch
from advbench.errors import UserError
from advbench.evaluator import attack_set
from advbench.evaluator.settings import Settings
from advbench.record import AttackRef
from advbench.registry import find

NAME = "pyautoattack"
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
VERSIONS = {"autoattack": "standard", "autoattack-plus": "plus", "autoattack-rand": "rand"}
SINGLE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


@dataclass(frozen=True, kw_only=True)
class Reference(WholeBatch):
    """The package's attack of that name, as its `kind` of AutoAttack has it; `twin` is ours of the same name."""

    kind: str
    twin: Attack

    def follows_gradient(self) -> bool:
        return self.twin.follows_gradient()

    def points(self, net: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int) -> Tensor:
        from pyautoattack import AutoAttack

        with _silent():
            adversary = AutoAttack(net, norm=NORMS[norm], eps=eps, seed=seed, device=x.device, version=self.kind)
            adversary.attacks_to_run = [self.name]
            z, _ = adversary.run_standard_evaluation(x, y, batch_size=len(x))
        return z


def version() -> str:
    """The version of the installed package."""
    return metadata.version(NAME)


def members(name: str) -> tuple[str, ...]:
    """The attacks that the package runs under a name, in its order."""
    return tuple(find("attacks", name).about.get("members", (name,)))


def attacks(refs: Sequence[AttackRef], settings: Settings, classes: int) -> tuple[list[Attack], list[AttackRef]]:
    """The package's attacks in place of ours that `refs` describe, and what a record says of them.

    Raises UserError for attacks or norms that it does not have, and for settings: it has its own.
    """
    names = list(dict.fromkeys(str(ref.settings["set"]) for ref in refs))
    if settings.attack_settings:
        given = ", ".join(settings.attack_settings)
        raise UserError(f"--engine reference runs its attacks as published: leave out --set {given}")
    if settings.norm not in NORMS:
        raise UserError(f"--engine reference has no norm {settings.norm}: choose from {', '.join(NORMS)}")
    if len(names) != 1 or names[0] not in (*VERSIONS, *SINGLE):
        raise UserError(f"--engine reference runs one of {', '.join((*VERSIONS, *SINGLE))}, not {'+'.join(names)}")
    (name,) = names
    kind = VERSIONS.get(name, "standard")  # "custom" would have five restarts of APGD, which no version has alone
    twins, _ = attack_set.resolve(
        members(name), {}, norm=settings.norm, classes=classes
    )  # of which only the cost is used
    made: list[Attack] = [
        Reference(name=one.name, kind=kind, twin=one, steps=one.updates(classes), eot=one.eot) for one in twins
    ]
    return made, [AttackRef(name=one.name, version=version(), settings={"set": name}) for one in made]


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, the package keeps to itself what it would print."""
    logger = logging.getLogger("auto-attack")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
