"""checkpoint -> record: accuracy against eps, the worst case over a set of attacks.

Nothing here knows how a model was trained: a number cannot depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from advbench import ranks
from advbench.allocator import keep_freed
from advbench.checkpoint import Loaded, weights_sha256
from advbench.data.dataset import Dataset
from advbench.engine.kernels import exact_kernels, untouched
from advbench.environment import environment
from advbench.errors import UserError
from advbench.evaluator import corruptions, flags, parallel
from advbench.evaluator.journal import Journal
from advbench.evaluator.outcome import Outcome
from advbench.evaluator.parallel import agreed
from advbench.evaluator.plan import Plan, plan
from advbench.evaluator.precision import bf16_pays, why_not
from advbench.evaluator.runner import Runner
from advbench.evaluator.settings import Settings
from advbench.evaluator.slots import choose_slots
from advbench.record import DatasetRef, Environment, Fates, Flag, ModelRef, Record, Trained
from advbench.version import __version__


@dataclass(frozen=True)
class Evaluation:
    """A record, each sample's fate behind it, and by row the adversarial points that were asked for."""

    record: Record
    fates: Fates
    points: dict[int, Tensor]


def evaluate(
    model: nn.Module | Loaded,
    data: Dataset,
    settings: Settings,
    *,
    journal: Journal | None = None,
    resume: bool = False,
) -> Evaluation:
    """Robust accuracy of `model` on `data` at each eps, against the worst of the attacks.

    `model` takes images in [0, 1], (B, C, H, W) float32, and gives logits (B, K); it is moved to the device, and else
    left as it was. With `resume` it goes on from the journal, with the processes and the precision that it was begun
    with. Within `ranks.joined` all processes get the outcome of one.
    Raises UserError for what does not fit together, and Interrupted when the journal's `stop` says so, or when
    another process is ended from outside.
    """
    loaded = model if isinstance(model, Loaded) else bare(model, data)
    journal = journal or Journal()
    device = torch.device(settings.device)
    if device.type == "cpu":
        keep_freed()
    net, data = loaded.net.to(device), data.to(device)
    begun = ranks.first(lambda: journal.saved() if resume else None)
    settings = as_begun(settings, begun)
    in_train_mode = net.training
    with untouched(net), exact_kernels(device):
        run = resolve(loaded, data, settings)
        slots = settings.slots or measured_slots(loaded, data, settings, run)
        count = parallel.how_many(net, data, run, slots=slots, asked=settings.processes, begun=begun)
        question = asked(loaded, data, settings, run, slots)
        agreed(lambda: journal.begin(question, number=ranks.rank(), of=count, resume=resume))
        runner = Runner(
            net, data, norm=settings.norm, seed=settings.seed, slots=slots, precision=run.precision, journal=journal,
            is_random=flags.is_random, keep_points=settings.keep_points,
        )  # fmt: skip
        outcome = parallel.attacked(runner, run, settings, count, resume=resume)
        raised = judge(runner, run, settings, outcome.fates, loaded, in_train_mode=in_train_mode)
    record = recorded(loaded, data, settings, run, runner, outcome, raised)
    return Evaluation(record, outcome.fates, runner.points)


def check(model: nn.Module | Loaded, data: Dataset, settings: Settings) -> None:
    """Raise UserError for what `evaluate` would refuse, before anything is measured."""
    loaded = model if isinstance(model, Loaded) else bare(model, data)
    device = torch.device(settings.device)
    net, data = loaded.net.to(device), data.to(device)
    with untouched(net), exact_kernels(device):
        resolve(loaded, data, settings)


def as_begun(settings: Settings, begun: dict[str, Any] | None) -> Settings:
    """`settings`, with the precision and slots that what is resumed was begun with where they are left open."""
    if begun is None:
        return settings
    engine = begun["engine"]
    precision = engine["precision"] if settings.precision == "auto" else settings.precision
    return replace(settings, precision=precision, slots=settings.slots or engine["slots"])


def resolve(loaded: Loaded, data: Dataset, settings: Settings) -> Plan:
    """What is run on the model, in eval mode, and the images on its device. Raises UserError for what does not fit."""
    net = loaded.net
    check_shapes(net, data)
    run = plan(settings, loaded, data, bf16_pays=lambda *attacks: ranks.first(lambda: bf16_pays(net, data, *attacks)))
    if settings.precision == "bf16" == run.precision and (reason := why_not(net, data)):
        raise UserError(f"the model does not work in bf16 ({reason}): choose --precision fp32")
    return run


def measured_slots(loaded: Loaded, data: Dataset, settings: Settings, run: Plan) -> int:
    """The rows of every pass that suit the device and the images, the same for all processes."""
    return ranks.first(
        lambda: choose_slots(
            loaded.net, data, norm=settings.norm, precision=run.precision, weights_sha256=loaded.weights_sha256
        )
    )


def asked(loaded: Loaded, data: Dataset, settings: Settings, run: Plan, slots: int) -> dict[str, Any]:
    """The question of a journal, as plain values."""
    return {
        "model": loaded.weights_sha256,
        "images": data.images_sha256,
        "norm": settings.norm,
        "eps": settings.sizes,
        "attacks": [ref.model_dump(mode="json") for ref in run.refs],
        "engine": run.engine(slots).model_dump(mode="json"),
        "seed": settings.seed,
        "advbench": __version__,
    }


def judge(
    runner: Runner, run: Plan, settings: Settings, fates: Fates, loaded: Loaded, *, in_train_mode: bool
) -> list[Flag]:
    """What there is to doubt: the model's outputs and gradients, the attacks, the run, and the training."""

    def judged() -> list[Flag]:
        if run.curve == "severity":
            return flags.facts(runner, in_train_mode=in_train_mode) + corruptions.notes(run.attacks, runner.data)
        return flags.judge(runner, fates, run.every, settings.sizes, in_train_mode=in_train_mode, notes=loaded.notes)

    found = ranks.first(lambda: runner.fitting(judged))
    trained = (loaded.trained or {}).get("flags", ())
    return [*found, *runner.flags(), *(Flag(**flag) for flag in trained)]


def recorded(
    loaded: Loaded,
    data: Dataset,
    settings: Settings,
    run: Plan,
    runner: Runner,
    outcome: Outcome,
    raised: list[Flag],
) -> Record:
    """The record of a finished evaluation."""
    journal = runner.journal
    return Record.of(
        outcome.fates,
        model=described(loaded),
        dataset=DatasetRef(
            name=data.name,
            split=data.split,
            indices=settings.indices or tuple(data.indices.tolist()),
            images_sha256=data.images_sha256,
        ),
        norm=settings.norm,
        eps=list(settings.grid),
        attack=list(run.refs),
        engine=run.engine(runner.oracle.slots),  # fewer than asked for where memory ran out
        seed=settings.seed,
        corruptions=outcome.corruptions,
        flags=raised,
        seconds=journal.seconds,
        forwards=journal.forwards,
        backwards=journal.backwards,
        environment=Environment(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=tuple(settings.command),
            **environment(str(settings.device)),
        ),
        supersedes=settings.supersedes,
    )


def described(loaded: Loaded) -> ModelRef:
    """The model as the record names it."""
    net = loaded.net
    wrapped = getattr(net, "wrappers", [])
    return ModelRef(
        spec=loaded.spec,
        arch=loaded.arch,
        settings={**getattr(net, "settings", {}), **({"wrappers": wrapped} if wrapped else {})},
        params=sum(p.numel() for p in net.parameters()),
        weights_sha256=loaded.weights_sha256,
        trained=Trained(**loaded.trained) if loaded.trained else None,
    )


def bare(net: nn.Module, data: Dataset) -> Loaded:
    """A network without a file behind it."""
    name = type(net).__name__
    return Loaded(
        net=net,
        spec=f"python:{name}",
        arch=getattr(net, "arch", name),
        weights_sha256=weights_sha256(net),
        trained=None,
        num_classes=data.num_classes,
    )


def check_shapes(net: nn.Module, data: Dataset) -> None:
    """UserError unless `net` (in eval mode) takes the images and answers with one logit a class."""
    x, _ = data.batch(slice(0, 2))
    shape = "x".join(map(str, data.shape))
    try:
        with torch.no_grad():
            logits = net(x)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the model does not take the {shape} images of {data.name}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        raise UserError(f"the model does not answer with logits (B, K) to {shape} images")
    if logits.shape[1] != data.num_classes:
        raise UserError(f"the model has {logits.shape[1]} classes, {data.name} has {data.num_classes}")
