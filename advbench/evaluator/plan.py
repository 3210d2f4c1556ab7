"""What an evaluation will run, decided before the model is looked at: attacks, engine, precision, kind of curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from advbench import ranks
from advbench.attacks.engine import Attack
from advbench.attacks.multi_task import heads_for, tasked
from advbench.attacks.transfer import sourced
from advbench.checkpoint import Loaded
from advbench.data.dataset import Dataset
from advbench.eps import CORRUPTIONS
from advbench.errors import UserError, unknown
from advbench.evaluator import corruptions, reference
from advbench.evaluator.choose import choose
from advbench.evaluator.second_look import covered, second_look
from advbench.models.tasks import Head
from advbench.record import AttackRef, Engine

ENGINE_VERSION = "3"  # raised when a change of the engine, beyond rounding, may change verdicts
CURVES = ("fast", "exact")
ENGINES = ("own", "reference")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Plan:
    """`attacks`, then in fp32 on who survives a search in bf16 `second`; `refs` describe them all in the record.
    `name` is the entry that was asked for, the first where there are several. `heads` are those of the tasks that are
    attacked."""

    name: str
    attacks: tuple[Attack, ...]
    second: tuple[Attack, ...]
    refs: list[AttackRef]
    reference: bool
    precision: Literal["fp32", "bf16"]
    curve: Literal["fast", "exact"]
    heads: dict[str, Head]

    def engine(self, slots: int) -> Engine:
        """As the record names it."""
        return Engine(
            name=reference.NAME if self.reference else "advbench",
            version=reference.version() if self.reference else ENGINE_VERSION,
            slots=slots,
            precision=self.precision,
            curve=self.curve,
        )


def check_choices(*, engine: str, curve: str, precision: str) -> None:
    """UserError for what there is not."""
    for what, value, choices in (
        ("engine", engine, ENGINES),
        ("curve", curve, CURVES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in choices:
            raise unknown(what, value, choices)


def plan(
    attack: str | Attack | Sequence[str | Attack],
    settings: dict[str, Any],
    loaded: Loaded,
    data: Dataset,
    *,
    norm: str,
    engine: str,
    precision: str,
    curve: str,
    bf16_pays: Callable[[Sequence[Attack], Sequence[Attack]], bool],
) -> Plan:
    """What was asked for, by the arguments of `evaluate`; `bf16_pays` decides where the precision is "auto".

    Raises UserError for what does not go together.
    """
    check_choices(engine=engine, curve=curve, precision=precision)
    attacks, refs = choose(attack, settings, norm=norm, classes=data.num_classes)
    names = list(dict.fromkeys(str(ref.settings["set"]) for ref in refs))
    if engine == "reference":
        if ranks.world() > 1:
            raise UserError("--engine reference attacks whole batches in one process: start it without torchrun")
        reference.check(names, norm, settings)
        attacks, refs = choose(reference.members(names[0]), {}, norm=norm, classes=data.num_classes)
        told = {"version": reference.version(), "settings": {"set": names[0]}}
        refs = [ref.model_copy(update=told) for ref in refs]
    heads = heads_for(attacks, loaded)
    attacks = corruptions.resolved([tasked(sourced(one, data), heads) for one in attacks], data)
    if engine == "own":
        refs = [
            ref.model_copy(update={"settings": {**ref.settings, **one.settings()}})
            for ref, one in zip(refs, attacks, strict=True)
        ]
    exact_alone = engine == "reference" or norm == CORRUPTIONS
    # The nearest point that a copy in bf16 has is a point on that copy's border, and rarely one of the model itself.
    in_fp32 = exact_alone or all(one.minimum_norm for one in attacks)
    second: list[Attack] = []
    if not in_fp32 and (precision == "bf16" or (precision == "auto" and covered(attacks))):
        second, more = second_look(attacks, norm=norm, classes=data.num_classes)
        if precision == "bf16" or bf16_pays(attacks, second):
            refs += more
        else:
            second = []
    return Plan(
        names[0],
        tuple(attacks),
        tuple(second),
        refs,
        reference=engine == "reference",
        precision="bf16" if second else "fp32",
        curve="exact" if exact_alone or curve == "exact" else "fast",
        heads=heads,
    )
