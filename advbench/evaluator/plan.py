"""What an evaluation runs: attacks, engine, precision and kind of curve, resolved from what is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from advbench import ranks
from advbench.checkpoint import Loaded
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Context
from advbench.engine.whole_batch import WholeBatch
from advbench.eps import CORRUPTIONS
from advbench.errors import UserError
from advbench.evaluator import attack_set, reference
from advbench.evaluator.fp32_recheck import covered, recheck_attacks
from advbench.evaluator.settings import Settings
from advbench.record import AttackRef, Engine

ENGINE_VERSION = "3"  # raised when a change of the engine, beyond rounding, may change verdicts


@dataclass(frozen=True)
class Plan:
    """`attacks`, then in fp32 on the images that stand after a search in bf16 `recheck`; `refs` describe them all in
    the record. `curve` says how images come to their place on the grid: by every attack at each size ("exact"), by
    descent ("fast"), by the distance of their nearest adversarial point ("nearest"), or by what severity of common
    corruptions does ("severity")."""

    attacks: tuple[Attack, ...]
    recheck: tuple[Attack, ...]
    refs: tuple[AttackRef, ...]
    reference: bool
    precision: Literal["fp32", "bf16"]
    curve: Literal["fast", "exact", "nearest", "severity"]

    @property
    def every(self) -> tuple[Attack, ...]:
        """All attacks, as fates count them."""
        return (*self.attacks, *self.recheck)

    @property
    def shareable(self) -> bool:
        """Whether several processes may share the images: not where whole batches are attacked, or few passes made."""
        return self.curve != "severity" and not any(isinstance(one, WholeBatch) for one in self.attacks)

    def engine(self, slots: int) -> Engine:
        """As the record names it."""
        return Engine(
            name=reference.NAME if self.reference else "advbench",
            version=reference.version() if self.reference else ENGINE_VERSION,
            slots=slots,
            precision=self.precision,
            curve="fast" if self.curve in ("fast", "nearest") else "exact",
        )


def plan(
    settings: Settings,
    loaded: Loaded,
    data: Dataset,
    *,
    bf16_pays: Callable[[Sequence[Attack], Sequence[Attack]], bool],
) -> Plan:
    """What is asked of the model, in eval mode, and the images on its device; `bf16_pays` decides where the precision
    is "auto". Raises UserError for what does not go together."""
    norm, classes = settings.norm, data.num_classes
    attacks, refs = attack_set.resolve(settings.attacks, settings.attack_settings, norm=norm, classes=classes)
    by_reference = settings.engine == "reference"
    if by_reference:
        attacks, refs = reference.attacks(refs, settings, classes)
    else:
        context = Context(loaded, data, norm, settings.seed)
        attacks = [one.prepare(context) for one in attacks]
        refs = [
            ref.model_copy(update={"settings": {**ref.settings, **one.settings()}})
            for ref, one in zip(refs, attacks, strict=True)
        ]
    whole_batches = [one.name for one in attacks if isinstance(one, WholeBatch)]
    if whole_batches and ranks.world() > 1:
        raise UserError(f"{whole_batches[0]} attacks whole batches in one process: start it without torchrun")
    kind: Literal["fast", "exact", "nearest", "severity"] = "exact" if settings.curve == "exact" else "fast"
    if norm == CORRUPTIONS:
        kind = "severity"
    elif whole_batches:
        kind = "exact"
    elif all(one.minimum_norm for one in attacks):
        kind = "nearest"
    # The nearest point that a copy in bf16 has is a point on that copy's border, and rarely one of the model itself.
    only_fp32 = kind in ("severity", "nearest") or bool(whole_batches)
    recheck: list[Attack] = []
    asked = settings.precision
    if not only_fp32 and (asked == "bf16" or (asked == "auto" and covered(attacks))):
        recheck, more = recheck_attacks(attacks, norm=norm, classes=classes)
        if asked == "bf16" or bf16_pays(attacks, recheck):
            refs = [*refs, *more]
        else:
            recheck = []
    return Plan(
        tuple(attacks),
        tuple(recheck),
        tuple(refs),
        reference=by_reference,
        precision="bf16" if recheck else "fp32",
        curve=kind,
    )
