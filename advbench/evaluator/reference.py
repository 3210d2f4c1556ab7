"""`--engine reference`: AutoAttack as its own package runs it, to check the engine of advbench against.

It is for verdicts, and runs in exact fp32 like all evaluations. Its time on a card is compared in PyTorch's own choice
of kernels, by `make bench-cuda`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar

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
    """The package's attack called `name`, as its AutoAttack version `kind` sets it; `twin` is advbench's own one."""

    from_outside: ClassVar[bool] = False  # it draws from the evaluation's seed

    kind: str
    twin: Attack

    def follows_gradient(self) -> bool:
        return self.twin.follows_gradient()

    def needs_small_logits(self) -> bool:
        return self.twin.needs_small_logits()

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
    """The attacks that the package runs under `name`, in its order."""
    return tuple(find("attacks", name).about.get("members", (name,)))


def attacks(refs: Sequence[AttackRef], settings: Settings, classes: int) -> tuple[list[Attack], list[AttackRef]]:
    """The package's attacks in place of those that `refs` describe, and their references in the record.

    Raises UserError for attacks and norms that the package does not have, and for any attack setting, because the
    package has its own.
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
    kind = VERSIONS.get(name, "standard")  # "custom" would give APGD five restarts, unlike "standard"
    # The twins only say what the package's attacks cost, and whether these follow gradients.
    twins, _ = attack_set.resolve(members(name), {}, norm=settings.norm, classes=classes)
    made: list[Attack] = [
        Reference(name=one.name, kind=kind, twin=one, steps=one.updates(classes), eot=one.eot) for one in twins
    ]
    return made, [AttackRef(name=one.name, version=version(), settings={"set": name}) for one in made]


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, the package does not log."""
    logger = logging.getLogger("auto-attack")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
