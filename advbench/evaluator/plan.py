"""What an evaluation runs: attacks, engine, precision and kind of curve, resolved from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from advbench import ranks
from advbench.attacks.base import make
from advbench.attacks.external import External
from advbench.attacks.function import Function
from advbench.checkpoint import Loaded
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Context
from advbench.engine.whole_batch import WholeBatch
from advbench.eps import CORRUPTIONS
from advbench.errors import UserError
from advbench.evaluator import attack_set, reference
from advbench.evaluator.attack_budget import within_budget
from advbench.evaluator.eps_grid import bisections
from advbench.evaluator.fp32_recheck import covered, recheck_attacks
from advbench.evaluator.settings import Settings
from advbench.models.black_box import Function as BlackBoxFunction
from advbench.models.black_box import is_black_box
from advbench.record import ATTACK_BUDGET, AttackRef, Engine

ENGINE_VERSION = "4"  # raise it when a change of the engine may change verdicts by more than rounding
NORM_VERSIONS = {"fourier-linf": "5"}  # of norms in which alone verdicts have changed since


def engine_version(norm: str) -> str:
    """The version of the engine, as records in `norm` have it."""
    return NORM_VERSIONS.get(norm, ENGINE_VERSION)


BLACK_BOX_ATTACKS = ("square", "rays", "hopskipjump")  # which need nothing but the model's answers


@dataclass(frozen=True)
class Plan:
    """The attacks of an evaluation and how they are run.

    `recheck` follows `attacks` in fp32, on the images that stand after a search in bf16; it is empty in fp32.
    `escalation` follows where `escalated`, because those before it may be too weak (see `evaluator.escalation`). `refs`
    describe all of them in the record, in that order.

    `curve` says how each image's place on the eps grid is found: "exact", every attack at every eps; "fast", by
    bisection and refinement (see `eps_grid`); "nearest", from the distance of the nearest adversarial example;
    "severity", from the lowest severity of common corruptions at which the image falls.
    """

    attacks: tuple[Attack, ...]
    recheck: tuple[Attack, ...]
    escalation: tuple[Attack, ...]
    refs: tuple[AttackRef, ...]
    norm: str
    reference: bool
    precision: Literal["fp32", "bf16"]
    curve: Literal["fast", "exact", "nearest", "severity"]
    exact: bool  # what the record says of the curve
    escalated: bool = False

    @property
    def every(self) -> tuple[Attack, ...]:
        """All attacks that run, in the order that the indices in fates refer to."""
        return (*self.attacks, *self.recheck, *(self.escalation if self.escalated else ()))

    def whole(self) -> Plan:
        """This plan with its escalation."""
        return replace(self, escalated=True)

    def strikes(self, points: int) -> list[int]:
        """How often each of `every` attacks an image that stands, where `points` of the eps are above 0."""
        once = points if self.curve == "exact" else 1
        counts = [once] * len(self.attacks) + [1] * len(self.recheck)
        if self.curve == "fast":
            counts[0] = bisections(points)
        return counts + [once] * (len(self.every) - len(counts))

    @property
    def shareable(self) -> bool:
        """Whether several processes may share the images: not under corruptions, nor for attacks on whole batches."""
        both = (*self.attacks, *self.escalation)
        return self.curve != "severity" and not any(isinstance(one, WholeBatch) for one in both)

    def engine(self, slots: int) -> Engine:
        """The engine as the record names it."""
        return Engine(
            name=reference.NAME if self.reference else "advbench",
            version=reference.version() if self.reference else engine_version(self.norm),
            slots=slots,
            precision=self.precision,
            curve="exact" if self.exact else "fast",
        )


def plan(
    settings: Settings,
    loaded: Loaded,
    data: Dataset,
    *,
    bf16_pays: Callable[[Sequence[Attack], Sequence[Attack]], bool],
) -> Plan:
    """The plan of `settings` for the model, in eval mode, and the images on its device.

    `bf16_pays(attacks, recheck)` decides where the precision is "auto". Raises UserError for settings, model and data
    that do not go together.
    """
    norm, classes = settings.norm, data.num_classes
    attacks, refs = attack_set.resolve(settings.attacks, settings.attack_settings, norm=norm, classes=classes)
    by_reference = settings.engine == "reference"
    if by_reference and loaded.abstain:
        raise UserError("--engine reference has no form for models that may reject: leave out --abstain")
    if by_reference:
        attacks, refs = reference.attacks(refs, settings, classes)
    if is_black_box(loaded.net):
        check_black_box(loaded, attacks, norm)
    budget = {} if settings.attack_budget is None else {ATTACK_BUDGET: settings.attack_budget}
    if by_reference and budget:
        raise UserError("--engine reference runs its attacks as published: leave out --attack-budget")
    if not by_reference:
        context = Context(loaded, data, norm, settings.seed)
        attacks = within_budget([one.prepare(context) for one in attacks], settings, classes, loaded.abstain)
        refs = [
            ref.model_copy(update={"settings": {**ref.settings, **one.settings(), **budget}})
            for ref, one in zip(refs, attacks, strict=True)
        ]
    both, own = attacks, sum(not ref.escalation for ref in refs)
    attacks, escalation, refs, later = attacks[:own], attacks[own:], refs[:own], refs[own:]
    if escalation and not settings.probes:
        name = refs[0].settings["set"]
        raise UserError(f"{name} escalates by what the probes find: leave out --probes off, or choose another attack")
    whole_batches = [one.name for one in both if isinstance(one, WholeBatch)]
    if whole_batches and ranks.world() > 1:
        raise UserError(f"{whole_batches[0]} attacks whole batches in one process: start it without torchrun")
    kind: Literal["fast", "exact", "nearest", "severity"] = "exact" if settings.curve == "exact" else "fast"
    if norm == CORRUPTIONS:
        kind = "severity"
    elif whole_batches:
        kind = "exact"
    elif all(one.minimum_norm for one in both):
        kind = "nearest"
    # The nearest adversarial example of a bf16 copy lies on that copy's decision boundary, and rarely fools the model.
    only_fp32 = kind in ("severity", "nearest") or bool(whole_batches or budget) or is_black_box(loaded.net)
    recheck: list[Attack] = []
    asked = settings.precision
    if not only_fp32 and (asked == "bf16" or (asked == "auto" and covered(both))):
        recheck, more = recheck_attacks(attacks, norm=norm, classes=classes)
        if asked == "bf16" or bf16_pays(attacks, recheck):
            refs = [*refs, *more]
        else:
            recheck = []
    return Plan(
        tuple(attacks),
        tuple(recheck),
        tuple(escalation),
        (*refs, *later),
        norm=norm,
        reference=by_reference,
        precision="bf16" if recheck else "fp32",
        curve=kind,
        exact=settings.curve == "exact" or kind in ("exact", "severity"),
    )


def check_black_box(loaded: Loaded, attacks: Sequence[Attack], norm: str) -> None:
    """Raise UserError where one of `attacks` follows a gradient, which the model has not.

    Attacks from outside may ask for what they like.
    """
    refused = [one.name for one in attacks if one.follows_gradient() and not isinstance(one, Function | External)]
    if not refused:
        return
    work = [name for name in BLACK_BOX_ATTACKS if norm in make(name, norm)[0].norms]
    choice = f"choose --attack {' or '.join(work)}" if work else f"norm {norm} has no attack without gradients"
    hint = (
        ", or wrap it in a torch.nn.Module if it is differentiable" if isinstance(loaded.net, BlackBoxFunction) else ""
    )
    raise UserError(
        f"{loaded.spec} is a black box: it has no gradient, which {', '.join(refused)} would follow: {choice}{hint}"
    )
