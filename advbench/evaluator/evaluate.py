"""From a checkpoint to a record: accuracy against eps, in the worst case over a set of attacks.

Nothing here knows how a model was trained, so that no number can depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advbench import ranks, rng
from advbench.allocator import keep_freed
from advbench.checkpoint import Loaded, answered, check_classes, code_sha256, weights_sha256
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.engine.kernels import exact_kernels, out_of_memory
from advbench.engine.oracle import gradient
from advbench.engine.whole_batch import WholeBatch
from advbench.environment import environment
from advbench.errors import UserError, one_line
from advbench.evaluator import certify, corruptions, flags, parallel
from advbench.evaluator.adversarials import Merged, merge
from advbench.evaluator.escalation import why_escalate
from advbench.evaluator.evaluation import Evaluation
from advbench.evaluator.identity import known_logits, model_ref, name_of, question_of
from advbench.evaluator.journal import Journal
from advbench.evaluator.outcome import Outcome
from advbench.evaluator.parallel import agreed
from advbench.evaluator.plan import Plan, plan
from advbench.evaluator.precision import bf16_failure, bf16_pays, multiply_adds
from advbench.evaluator.runner import Runner
from advbench.evaluator.search_beyond import expected_passes
from advbench.evaluator.settings import Settings
from advbench.evaluator.slots import choose_slots
from advbench.models.adapted import adapted, plain
from advbench.models.base import straight_through
from advbench.models.black_box import BlackBox, black_box
from advbench.models.untouched import untouched
from advbench.record import ESCALATED, DatasetRef, Environment, External, Fates, Flag, Record

TRIED = slice(0, 2)  # the images on which a model is tried: some refuse a batch of one
OVERHEAD = 1e5  # multiply-adds of one image in the time that its pass takes besides
COMPILED_FROM = 1e16  # multiply-adds: a minute of a fast GPU, about what compiling takes
MAX_ITEMS = 10**7  # images x targets x restarts of an attack: an evaluation of more would not end


class Judged(NamedTuple):
    """The flags, and what it cost to find them: seconds, and forward passes of single images."""

    flags: list[Flag]
    cost: dict[str, Any]


def evaluate(
    model: nn.Module | Loaded,
    data: Dataset,
    settings: Settings,
    *,
    journal: Journal | None = None,
    resume: bool = False,
) -> Evaluation:
    """Robust accuracy of `model` on `data` at each eps, against the worst of the attacks.

    `model` takes images in [0, 1], (B, C, H, W) float32, and returns logits (B, K), with `Loaded.abstain` (B, K + 1),
    or needs no more for that than `models.adapted` gives it. It is moved to the device and otherwise left unchanged.
    `resume` continues the evaluation in `journal`, with the number of processes, the precision and the slots that it
    was started with. Within `ranks.joined` all processes get the same result. Raises UserError for a model, data and
    settings that do not go together, and Interrupted when the journal's `stop` returns true or a worker process was
    ended from outside.
    """
    loaded = fitted(model, data)
    journal = journal or Journal()
    journal.tell()
    device = torch.device(settings.device)
    if device.type == "cpu":
        keep_freed()
    net, data = loaded.net.to(device), data.to(device)
    in_train_mode = net.training
    with untouched(net), exact_kernels(device):
        data = check_shapes(net, data, loaded.abstain)
        with enough_memory():
            journal.logits = ranks.first(lambda: known_logits(loaded, data, settings.seed))
        saved = ranks.first(lambda: journal.saved() if resume else None)
        settings = with_saved_choices(settings, saved)
        run = resolve(loaded, data, settings)
        slots = settings.slots or measured_slots(loaded, data, settings, run)
        count = parallel.how_many(net, data, run, slots=slots, requested=settings.processes, saved=saved)
        question = question_of(loaded, data, settings, run, slots)
        agreed(lambda: journal.begin(question, number=ranks.rank(), of=count, resume=resume))
        rng.reseed(settings.seed)  # from which a random model draws, whatever was drawn before
        runner = Runner(
            net, data, norm=settings.norm, seed=settings.seed, slots=slots, precision=run.precision, journal=journal,
            is_random=flags.is_random, keep_points=settings.keep_points, rejects=loaded.abstain is not None,
            compiler=compiler(loaded, data, settings, run), keep_hits=settings.certify != "off",
        )  # fmt: skip
        proofs = certify.Proofs(None)
        if settings.certify == "first":
            proofs = ranks.first(lambda: certify.before(runner, settings))
            runner.proved = runner.proved if proofs.proved is None else proofs.proved
        if settings.probes and run.curve != "severity":
            images, classes = len(runner.correct), data.num_classes
            spent = sum(sum(one.passes(classes)) for one in run.attacks) * images
            journal.forecast.probes.images = expected_passes(images, spent)
        journal.why = ranks.first(lambda: journal.why)
        run = run.whole() if journal.why else run
        outcome = parallel.attack_all(runner, run, settings, count, resume=resume)
        judged = judge(runner, run, settings, outcome.fates, loaded, in_train_mode=in_train_mode)
        if why := why_escalate(run, outcome.fates, judged.flags, settings.sizes):
            run, count = run.whole(), count if journal.merged else 1  # alone where the model could not be shared
            journal.go_on(why)
            runner.forget()
            outcome = parallel.attack_all(runner, run, settings, count, resume=resume)
            again = judge(runner, run, settings, outcome.fates, loaded, in_train_mode=in_train_mode)
            judged = Judged(again.flags, {name: judged.cost[name] + cost for name, cost in again.cost.items()})
        merged = ranks.first(lambda: runner.halving_slots(lambda: with_others(runner, run, settings, outcome.fates)))
        journal.forwards += merged.forwards
        runner.points |= merged.points if settings.keep_points or settings.certify != "off" else {}
        fates = merged.fates
        if settings.certify == "after":
            proofs = ranks.first(lambda: certify.after(runner, settings, fates))
        fates = ranks.first(lambda: certify.merge(runner, settings, fates, proofs))
    journal.forecast.end()
    outcome = replace(outcome, fates=replace(fates, logits=journal.logits))
    notes = proofs.flags() if settings.certify != "off" else []
    judged = Judged([*merged.flags(judged.flags), *notes], judged.cost)
    record = make_record(loaded, data, settings, run, runner, outcome, judged, merged.files, proofs)
    return Evaluation(
        record,
        outcome.fates,
        runner.points if settings.keep_points or settings.certify == "off" else {},
        attempts={row: point for row, (_, point) in runner.attempts.items()} if settings.keep_points else None,
        logits=runner.logits.cpu(),
        data=data.to("cpu"),
        tallies=merged.tallies,
    )


def check(model: nn.Module | Loaded, data: Dataset, settings: Settings) -> str:
    """The name of the question, as a file may have it (see `identity.name_of`). Raises UserError as `planned` does."""
    return planned(model, data, settings)[1]


def planned(model: nn.Module | Loaded, data: Dataset, settings: Settings) -> tuple[Plan, str]:
    """What `evaluate` would run, and the name of the question.

    Raises UserError for a model, data and settings that it would refuse, before anything is measured.
    """
    loaded = fitted(model, data)
    device = torch.device(settings.device)
    net, data = loaded.net.to(device), data.to(device)
    with untouched(net), exact_kernels(device):
        data = check_shapes(net, data, loaded.abstain)
        run = resolve(loaded, data, settings)
        return run, name_of(loaded, data, settings, run)


def expected_work(loaded: Loaded, data: Dataset, settings: Settings, run: Plan) -> float:
    """How much work an evaluation is compared with others, roughly: in multiply-adds of the passes it may make.

    `run`: what is planned for the other arguments.
    """
    net, data = loaded.net.to(settings.device), data.to(torch.device(settings.device))
    strikes = run.strikes(sum(size > 0 for size in settings.sizes))
    passes = sum(sum(one.passes(data.num_classes)) * count for one, count in zip(run.every, strikes, strict=True))
    with untouched(net), rng.kept():
        return len(data) * passes * (multiply_adds(net, data) + OVERHEAD)


def compiler(loaded: Loaded, data: Dataset, settings: Settings, run: Plan) -> str:
    """The backend of torch.compile for the search: on CUDA, where an evaluation may take longer than compiling."""
    cuda = torch.device(settings.device).type == "cuda"
    return "inductor" if cuda and expected_work(loaded, data, settings, run) >= COMPILED_FROM else ""


def with_saved_choices(settings: Settings, saved: dict[str, Any] | None) -> Settings:
    """`settings`, whose open precision and slots are those that the resumed evaluation was started with."""
    if saved is None:
        return settings
    engine = saved["engine"]
    precision = engine["precision"] if settings.precision == "auto" else settings.precision
    return replace(settings, precision=precision, slots=settings.slots or engine["slots"])


def resolve(loaded: Loaded, data: Dataset, settings: Settings) -> Plan:
    """What is run on the model, in eval mode and of the right shapes, and the images on its device.

    Raises UserError for what does not fit.
    """
    net = loaded.net
    with enough_memory():
        run = plan(
            settings, loaded, data, bf16_pays=lambda *attacks: ranks.first(lambda: bf16_pays(net, data, *attacks))
        )
    certify.check(settings, run)
    both = (*run.attacks, *run.escalation)
    check_gradient(net, data, both)
    for attack in both:
        if attack.items(data.num_classes) * len(data) > MAX_ITEMS:
            raise UserError(f"{attack.name}: {attack.restarts} restarts of {len(data)} images are too many")
    if settings.precision == "bf16" == run.precision and (reason := bf16_failure(net, data)):
        raise UserError(f"the model does not work in bf16 ({reason}): choose --precision fp32")
    return run


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise UserError where what is done before the attacks runs out of memory."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"out of memory before the attacks start ({error}): free some, or choose --device cpu"
        ) from None


def measured_slots(loaded: Loaded, data: Dataset, settings: Settings, run: Plan) -> int:
    """The number of slots that suits the device and the images, the same for all processes."""
    return ranks.first(lambda: choose_slots(loaded.net, data, norm=settings.norm, precision=run.precision))


def judge(
    runner: Runner, run: Plan, settings: Settings, fates: Fates, loaded: Loaded, *, in_train_mode: bool
) -> Judged:
    """The flags of the evaluation: on the model's outputs and gradients, the attacks, the run and the training."""
    passes, began = 0, time.perf_counter()
    attacks = [runner.as_seen(one) for one in run.every]

    def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal passes
        passes += len(inputs[0])

    runner.journal.forecast.probing(lambda: passes)
    runner.journal.tell()

    def judge_all() -> list[Flag]:
        if run.curve == "severity":
            return [
                *(flags.note("model", text) for text in loaded.notes),
                *flags.facts(runner, loaded, in_train_mode=in_train_mode),
                *corruptions.notes(run.attacks, runner.data),
            ]
        return flags.judge(
            runner, loaded, fates, attacks, settings.sizes, in_train_mode=in_train_mode, probes=settings.probes
        )

    with runner.net.register_forward_pre_hook(count):
        found = ranks.first(lambda: runner.halving_slots(judge_all))
    if run.escalated:
        detail = (
            f"the evaluation went on to {'+'.join(one.name for one in run.escalation)}: {'; '.join(runner.journal.why)}"
        )
        found.append(Flag(name=ESCALATED, severity="note", detail=detail))
    cost = {"seconds": round(time.perf_counter() - began, 3), "forwards": passes}
    if runner.oracle.random and runner.journal.redrawn:
        detail = f"the model's noise is not that of an evaluation in one go: it was {runner.journal.redrawn}"
        found.append(Flag(name="other-noise", severity="note", detail=detail))
    trained = (loaded.trained or {}).get("flags", ())
    return Judged([*found, *runner.flags(), *(Flag(**flag) for flag in trained)], cost)


def with_others(runner: Runner, run: Plan, settings: Settings, fates: Fates) -> Merged:
    """The fates of the attacks, lowered by the adversarial images of others."""
    return merge(
        settings.adversarials, fates, oracle=runner.oracle, data=runner.data, norm=settings.norm,
        sizes=settings.sizes, attacks=len(run.refs), seed=settings.seed,
    )  # fmt: skip


def make_record(
    loaded: Loaded,
    data: Dataset,
    settings: Settings,
    run: Plan,
    runner: Runner,
    outcome: Outcome,
    judged: Judged,
    external: Sequence[External],
    proofs: certify.Proofs,
) -> Record:
    """The record of a finished evaluation."""
    journal = runner.journal
    measured: dict[str, Any] = {"parts": journal.work.seconds, "probes": judged.cost}
    if settings.certify != "off":
        measured["certify"] = certify.cost(runner, settings, proofs)
    if runner.compiled is not None:
        measured["compile"] = runner.compiled.status
    return Record.of(
        outcome.fates,
        model=model_ref(loaded, settings.name),
        dataset=DatasetRef(
            name=data.name,
            split=data.split,
            indices=settings.indices or tuple(data.indices.tolist()),
            images_sha256=data.images_sha256,
        ),
        norm=settings.norm,
        eps=list(settings.grid),
        attack=list(run.refs),
        engine=run.engine(runner.oracle.slots),  # fewer than at the start where memory ran out
        seed=settings.seed,
        corruptions=outcome.corruptions,
        flags=judged.flags,
        seconds=journal.seconds,
        forwards=journal.forwards if runner.counted else None,
        backwards=journal.backwards if runner.counted else None,
        useful=journal.work.useful_share,
        external=external,
        environment=Environment(
            date=datetime.now(UTC).isoformat(timespec="milliseconds"),
            command=tuple(settings.command),
            **{**environment(str(settings.device)), **measured},
        ),
        supersedes=settings.supersedes,
    )


def fitted(model: nn.Module | Loaded, data: Dataset) -> Loaded:
    """`model` with a network that takes the images of `data` and returns logits, where it can be made to."""
    if not isinstance(model, Loaded):
        return bare(model, data)
    with enough_memory():
        net, notes = adapted(model.net, data.batch(TRIED)[0], data.num_classes if data.num_classes_known else None)
    return replace(model, net=net, notes=(*model.notes, *notes))


def bare(net: Any, data: Dataset) -> Loaded:
    """`net` as a loaded model that comes from no file, with the number of classes of `data`.

    Raises UserError for what is no model (see `black_box`).
    """
    net = black_box(net, data.num_classes, class_names=data.class_names)
    with enough_memory():
        net, notes = adapted(net, data.batch(TRIED)[0], data.num_classes if data.num_classes_known else None)
    inner = plain(net)
    name = inner.arch if isinstance(inner, BlackBox) else type(inner).__name__
    name = getattr(inner, "original_name", name)  # TorchScript keeps the name of the class
    return Loaded(
        net=net,
        spec=f"python:{name}",
        arch=getattr(inner, "arch", name),
        weights_sha256=weights_sha256(net),
        trained=None,
        num_classes=data.num_classes,
        notes=notes,
        code_sha256=code_sha256(net, name),
        outside=True,  # hooks and patches can change any network
    )


def check_shapes(net: nn.Module, data: Dataset, abstain: str | None = None) -> Dataset:
    """`data` with the number of classes of `net`, where only its labels said how many there are.

    Raises UserError unless `net`, in eval mode, takes the images and returns one logit for each class, and with
    `abstain` one more.
    """
    x, _ = data.batch(TRIED)
    shape = "x".join(map(str, data.shape))
    try:
        with torch.no_grad():
            logits = net(x)
    except Exception as error:  # a model from elsewhere may raise anything
        raise UserError(f"the model does not take the {shape} images of {data.name}: {one_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        made = f"of {len(x)} {answered(logits)}"
        raise UserError(f"the model does not return logits (B, K) for {shape} images: {made}")
    known = data.num_classes_known
    count = check_classes("the model", logits.shape[1], data.name, data.num_classes, known=known, abstain=abstain)
    return data.with_classes(count)


def check_gradient(net: nn.Module, data: Dataset, attacks: Sequence[Attack]) -> None:
    """Raise UserError if one of `attacks` follows the gradient of `net`, in eval mode, and a backward pass fails."""
    followed = [one for one in attacks if one.follows_gradient() and not isinstance(one, WholeBatch)]
    if not followed:
        return
    query = data.batch(TRIED)[0].requires_grad_()
    through = straight_through(net) if followed[0].straight_through else nullcontext()
    try:
        with enough_memory(), torch.enable_grad(), through:
            gradient(net(query).float(), query)
    except UserError:
        raise
    except Exception as error:  # a model from elsewhere may raise anything
        raise UserError(
            f"the model gives no gradient for {followed[0].name} ({one_line(error)}): choose attacks without "
            "gradients, such as --attack square, or hopskipjump"
        ) from error
