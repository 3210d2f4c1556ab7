"""checkpoint -> record: accuracy against eps, the worst case over a set of attacks.

Nothing here knows how a model was trained: a number cannot depend on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from advbench import ranks
from advbench.allocator import keep_freed
from advbench.attacks.engine import Attack
from advbench.attacks.oracle import exact_kernels, untouched
from advbench.checkpoint import Loaded, weights_sha256
from advbench.data.dataset import Dataset
from advbench.environment import environment
from advbench.eps import CORRUPTIONS, Eps, parse_eps
from advbench.errors import UserError
from advbench.evaluator import corruptions, flags, reference, workers
from advbench.evaluator.bench import Bench
from advbench.evaluator.journal import Journal
from advbench.evaluator.plan import Plan, plan
from advbench.evaluator.precision import bf16_pays, why_not
from advbench.evaluator.share import agreed, share, together, told
from advbench.evaluator.slots import choose_slots
from advbench.record import Corruptions, DatasetRef, Environment, Fates, Flag, ModelRef, Record, Trained
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
    *,
    attack: str | Attack | Sequence[str | Attack] = "autoattack",
    eps: Sequence[Eps | str | float],
    norm: str = "linf",
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    slots: int | None = None,
    curve: str = "fast",
    engine: str = "own",
    processes: int | None = 1,
    indices: str | None = None,
    journal: Journal | None = None,
    resume: bool = False,
    keep_points: bool = False,
    command: Sequence[str] = (),
    supersedes: str | None = None,
) -> Evaluation:
    """Robust accuracy of `model` on `data` at each of `eps`, against the worst of the attacks.

    `model` takes images in [0, 1], (B, C, H, W) float32, and gives logits (B, K); it is moved to `device`, and else
    left as it was. `attack` names entries of the registry (sets such as autoattack count as their members) or is made
    by hand; `settings` go to those that have them. `indices` says in short which images these are ("first:1000").
    `precision` "bf16" searches in bf16 and attacks who survives once more in fp32; "auto" does so where it
    is the faster one (`precision.bf16_pays`) and the attacks hold what the second look does, so that it makes none
    stronger than it is.
    `processes` on a CPU share the images, None for as many as are worth their start; where `model` cannot be handed to
    them, there is one. Within `ranks.joined` the processes are those of the launcher, and all get the outcome of one,
    each with a journal of its own. A resumed evaluation has the processes and the precision it was begun with.
    Raises UserError for what does not fit together, and Interrupted when the journal's `stop` says so, or when
    another process is ended from outside.
    """
    loaded = model if isinstance(model, Loaded) else bare(model, data)
    place = torch.device(device)
    if place.type == "cpu":
        keep_freed()
    grid = make_grid(eps, norm)
    journal = journal or Journal()
    saved = [one for one in ranks.gather_objects(agreed(lambda: journal.saved() if resume else None)) if one]
    if saved and precision == "auto":  # as it was begun, perhaps elsewhere
        precision = saved[0]["engine"]["precision"]
    net, here = loaded.net.to(place), data.to(place)
    with untouched(net):
        check_shapes(net, here)
        run = plan(
            attack, settings or {}, loaded, data, norm=norm, engine=engine, precision=precision, curve=curve,
            bf16_pays=lambda *attacks: ranks.first(lambda: bf16_pays(net, here, *attacks)),
        )  # fmt: skip
        if precision == "bf16" == run.precision and (reason := why_not(net, here)):
            raise UserError(f"the model does not work in bf16 ({reason}): choose --precision fp32")
    data = here
    slots = slots or next((one["engine"]["slots"] for one in saved), None)
    sizes = [size.value for size in grid]
    in_train_mode = net.training
    with untouched(net), exact_kernels(place):
        slots = slots or ranks.first(
            lambda: choose_slots(net, data, norm=norm, precision=run.precision, weights_sha256=loaded.weights_sha256)
        )
        if ranks.world() > 1:
            processes = ranks.world()
        elif saved:  # what is saved are the shares of so many
            processes = saved[0].get("shard", {"of": 1})["of"]
            if processes > 1 and place.type != "cpu":
                raise UserError(f"{journal.path} was begun by {processes} processes on a CPU: resume it there")
        else:
            processes = workers.how_many(net, data, run, norm=norm, slots=slots, asked=processes)
        asked = {
            "model": loaded.weights_sha256,
            "images": data.images_sha256,
            "norm": norm,
            "eps": sizes,
            "attacks": [ref.model_dump(mode="json") for ref in run.refs],
            "engine": run.engine(slots).model_dump(mode="json"),
            "seed": seed,
            "advbench": __version__,
        }
        agreed(lambda: journal.begin(sharded(asked, ranks.rank(), processes), resume=resume))
        bench = Bench(
            net,
            data,
            norm=norm,
            seed=seed,
            slots=slots,
            precision=run.precision,
            journal=journal,
            is_random=flags.is_random,
            keep_points=keep_points,
            heads=run.heads,
        )
        fates, errors = by_all(bench, run, sizes, asked, processes=processes, resume=resume)

        def judged() -> list[Flag]:
            if norm == CORRUPTIONS:
                return flags.facts(bench, in_train_mode=in_train_mode) + corruptions.notes(run.attacks, data)
            made = [*run.attacks, *run.second]
            return flags.judge(bench, fates, made, sizes, in_train_mode=in_train_mode, notes=loaded.notes)

        raised = ranks.first(lambda: bench.fitting(judged))
        raised += bench.flags()
        raised += [Flag(**flag) for flag in (loaded.trained or {}).get("flags", ())]  # raised while it was trained
    record = Record.of(
        fates,
        model=described(loaded),
        dataset=DatasetRef(
            name=data.name,
            split=data.split,
            indices=indices or tuple(data.indices.tolist()),
            images_sha256=data.images_sha256,
        ),
        norm=norm,
        eps=grid,
        attack=run.refs,
        engine=run.engine(bench.oracle.slots),  # fewer than asked for where memory ran out
        seed=seed,
        corruptions=errors,
        flags=raised,
        seconds=journal.seconds,
        forwards=journal.forwards,
        backwards=journal.backwards,
        environment=Environment(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=tuple(command),
            **environment(str(place)),
        ),
        supersedes=supersedes,
    )
    return Evaluation(record, fates, bench.points)


def by_all(
    bench: Bench, run: Plan, sizes: list[float], asked: dict[str, Any], *, processes: int, resume: bool
) -> tuple[Fates, Corruptions | None]:
    """The fates of all images, by this process and those that share them with it."""
    if processes == 1 or bench.norm == CORRUPTIONS:  # these are few passes: all processes make them all
        return agreed(lambda: attacked(bench, run, sizes))
    rows = [share(len(bench.data), number, processes) for number in range(processes)]
    if ranks.world() > 1:
        bench.keep_to(rows[ranks.rank()])
        mine, errors = agreed(lambda: attacked(bench, run, sizes))
        return together(bench, ranks.gather_objects(told(bench, mine, rows[ranks.rank()]))), errors
    jobs = [
        workers.job(bench, run, sizes, rows[number], sharded(asked, number, processes), resume=resume)
        for number in range(1, processes)
    ]
    with workers.at_work(jobs) as others:
        if others is None:
            if resume:
                warnings.warn("the other processes do not start: going on alone, from the beginning", stacklevel=2)
            bench.journal.begin(asked, resume=False)
            return attacked(bench, run, sizes)
        bench.keep_to(rows[0])
        bench.crew()
        bench.journal.check = others.check
        mine, errors = attacked(bench, run, sizes)
        return together(bench, [told(bench, mine, rows[0]), *others.told(bench.journal.poll)]), errors


def sharded(asked: dict[str, Any], number: int, of: int) -> dict[str, Any]:
    """What is asked of process `number` of `of`, for its journal."""
    return {**asked, "shard": {"rank": number, "of": of}} if of > 1 else asked


def attacked(bench: Bench, run: Plan, sizes: list[float]) -> tuple[Fates, Corruptions | None]:
    """The fates of the bench's own share of the images, and what only corruptions have."""
    if bench.norm == CORRUPTIONS:
        return corruptions.curve(bench, run.attacks, sizes)
    if run.reference:
        return reference.curve(bench, run.name, sizes, slots=bench.oracle.slots), None
    if all(one.minimum_norm for one in run.attacks):
        return bench.nearest(run.attacks, sizes), None
    return bench.curve(run.attacks, sizes, run.curve, run.second), None


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


def make_grid(eps: Sequence[Eps | str | float], norm: str) -> list[Eps]:
    """Sizes, rising, each once. Raises UserError for an empty list and for a size the norm cannot have."""
    sizes: dict[float, Eps] = {}
    for size in eps:
        made = parse_eps(size.text if isinstance(size, Eps) else str(size), norm)
        sizes.setdefault(made.value, made)
    if not sizes:
        raise UserError("no eps was given: write a comma list such as 0,2/255,4/255,8/255")
    return [sizes[value] for value in sorted(sizes)]


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
