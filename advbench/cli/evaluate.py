"""`advbench evaluate`: accuracy against eps, the worst case over a set of attacks, as a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench import ranks
from advbench.cli import options
from advbench.cli.choice import Choice, check_asked, choose_points
from advbench.cli.cluster import evaluate_there, parse_place
from advbench.cli.console import Screen
from advbench.cli.settings import parse_settings, split_names
from advbench.cli.stop import Halted, Stop
from advbench.eps import CORRUPTIONS
from advbench.errors import Interrupted, UserError
from advbench.registry import find

if TYPE_CHECKING:
    from advbench.cli.subject import Subject
    from advbench.record import Record


def command(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="SPEC", help="run folder, file, robustbench:NAME, ... [default: newest run]"),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME", help="worst case over all given (repeatable) [default: autoattack]"),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option("--eps", metavar="LIST", help="0,2/255,8/255 [default: 0 to 2 x the training eps]"),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", metavar="N", help="images [default: 1000, or all there are]")] = None,
    subset: Annotated[
        str, typer.Option("--subset", metavar="WHICH", help="first, random:SEED, or a file of positions")
    ] = "first",
    dataset: options.Dataset = None,
    arch: options.Arch = None,
    norm: options.Norm = None,
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="own, or reference: pyautoattack")] = "own",
    curve: Annotated[
        str, typer.Option("--curve", metavar="NAME", help="fast, or exact: every attack at each eps")
    ] = "fast",
    leaderboard: Annotated[
        Path | None, typer.Option("--leaderboard", metavar="DIR", help="publish the record in these tables")
    ] = None,
    again: Annotated[
        Path | None, typer.Option("--again", metavar="RECORD", help="repeat this record, and compare the outcome")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    settings: options.Set = None,
    config: options.Flags = None,
    out: options.Out = None,
    resume: options.Resume = False,
    force: options.Force = False,
    trust_pickle: options.TrustPickle = False,
    on: options.On = "local",
    as_json: options.Json = False,
) -> None:
    """Measure accuracy against eps.

    Writes a record: to --leaderboard or --out, else into the run folder, else to ./records. On a CPU a long one starts
    a process for each of PyTorch's threads (OMP_NUM_THREADS). GPUs share the images by torchrun --nproc-per-node N -m
    advbench evaluate ...
    """
    with ranks.joined(), Screen(as_json=as_json).ready() as screen:
        if again is not None:
            from advbench.cli.again import repeat

            check_alone(context)
            repeat(
                again,
                model=model[-1] if model else None,
                device=device,
                leaderboard=leaderboard,
                trust_pickle=trust_pickle,
                screen=screen,
                argv=context.obj or (),
            )
            return
        evaluate(
            model or [],
            attacks=split_names(attack or ["autoattack"]),
            eps=eps,
            n=n,
            subset=subset,
            dataset=dataset,
            arch=arch,
            norm=norm,
            engine=engine,
            curve=curve,
            seed=seed,
            device=device,
            precision=precision,
            settings=parse_settings(settings or []),
            leaderboard=leaderboard,
            out=out,
            resume=resume,
            force=force,
            trust_pickle=trust_pickle,
            on=on,
            screen=screen,
            argv=context.obj or (),
        )


def check_alone(context: typer.Context) -> None:
    """Raises UserError for flags that a record to be repeated has settled already."""
    fitting = ("again", "model", "device", "leaderboard", "trust_pickle", "as_json")
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and parameter.name not in fitting and told(context, parameter.name)
    ]
    if given:
        raise UserError(
            f"--again asks what its record asked, and {', '.join(given)} would change that: with it go --model, "
            "--device, --leaderboard, --trust-pickle and --json"
        )
    if len(context.params["model"] or ()) > 1:
        raise UserError("--again repeats one record, of one model: --model says where its weights lie now")


def told(context: typer.Context, parameter: str) -> bool:
    """Whether the command line itself has that flag."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def evaluate(
    models: Sequence[str] = (),
    *,
    attacks: Sequence[str] = ("autoattack",),
    eps: str | None = None,
    n: int | None = None,
    subset: str = "first",
    dataset: str | None = None,
    arch: str | None = None,
    norm: str | None = None,
    engine: str = "own",
    curve: str = "fast",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    settings: dict[str, Any] | None = None,
    leaderboard: Path | None = None,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    trust_pickle: bool = False,
    on: str = "local",
    screen: Screen | None = None,
    argv: Sequence[str] = (),
) -> list[Record]:
    """Evaluate each of `models` (none: the newest run), save a record of each, and show its curve.

    Raises UserError, before anything is measured, for whatever does not fit; Interrupted when a signal came.
    """
    screen = screen or Screen()
    for name in attacks:
        find("attacks", name)
    corrupt = CORRUPTIONS in attacks
    if corrupt and (len(attacks) > 1 or norm not in (None, CORRUPTIONS)):
        raise UserError("corruptions have severities, and neither a norm nor an eps: evaluate them by themselves")
    norm = CORRUPTIONS if corrupt else norm
    other_norms = any(Path(name).is_dir() for name in models or ["runs"])  # a run may be trained in one
    check_asked(eps=eps, norm=norm or (None if other_norms else "linf"), n=n, subset=subset)
    ray = parse_place(on)
    from advbench.cli import subject as subjects
    from advbench.cli.keep import check_writable

    names = list(models) or [subjects.newest_run()]
    if ray is not None:
        how = {
            "attacks": list(attacks), "eps": eps, "n": n, "subset": subset, "dataset": dataset, "arch": arch,
            "norm": norm, "engine": engine, "curve": curve, "seed": seed, "precision": precision,
            "settings": settings, "leaderboard": leaderboard, "out": out, "force": force, "trust_pickle": trust_pickle,
        }  # fmt: skip
        return evaluate_there(ray, names, how, device=device, screen=screen)
    place = subjects.pick_device(device)
    if str(place) == "cuda" and ranks.world() > 1:
        place = subjects.pick_device(f"cuda:{ranks.local_rank()}")
    from advbench.attacks.multi_task import heads_for, tasked
    from advbench.evaluator.choose import choose
    from advbench.evaluator.plan import check_choices

    check_choices(engine=engine, curve=curve, precision=precision)

    with Stop() as stop:
        prepared = []
        cache: subjects.Cache = {}
        for name in names:
            stop.check()
            with screen.fetching(stop.check) as fetching:
                load = partial(
                    subjects.load_subject, name, dataset=dataset, arch=arch, norm=None if corrupt else norm,
                    device=place, trust_pickle=trust_pickle, fetching=fetching, cache=cache,
                )  # fmt: skip
                subject = ranks.in_turn(load)
            if corrupt:
                subject = replace(subject, norm=CORRUPTIONS, train_eps=None)
            choice = choose_points(subject, eps=eps, n=n, subset=subset)
            made, _ = choose(list(attacks), settings or {}, norm=subject.norm, classes=subject.data.num_classes)
            heads = heads_for(made, subject.loaded)
            for one in made:
                tasked(one, heads)
            folder = leaderboard or out or subject.loaded.folder or Path()
            check_writable(folder / "records")
            prepared.append((subject, choice, folder))
        return [
            _one(
                subject, choice, folder,
                how={
                    "attack": list(attacks), "settings": settings or {}, "seed": seed, "device": place,
                    "precision": precision, "curve": curve, "engine": engine, "processes": None,
                    "command": ("advbench", *argv),
                },
                why="" if models else " (newest run)",
                publish=leaderboard is not None, resume=resume, force=force, stop=stop, screen=screen,
            )
            for subject, choice, folder in prepared
        ]  # fmt: skip


def _one(
    subject: Subject,
    choice: Choice,
    folder: Path,
    *,
    how: dict[str, Any],
    why: str,
    publish: bool,
    resume: bool,
    force: bool,
    stop: Stop,
    screen: Screen,
) -> Record:
    """Evaluate one model, and put its record into `folder`."""
    from advbench.cli.keep import AlreadyDone, KeptJournal, in_use, journal_path, save, shard_path, shown, writable
    from advbench.evaluator import evaluate as measure
    from advbench.record import slug

    loaded = subject.loaded
    screen.say(
        f"{loaded.spec}{why}: {'+'.join(how['attack'])}, {subject.norm} eps {choice.eps_text} ({choice.about_eps}), "
        f"{choice.about_rows} of {subject.data.name} ({subject.about_data}), on {how['device']}"
    )
    path = shard_path(journal_path(folder, loaded.spec, subject.data.name, subject.norm, how["attack"]), resume)
    if path.exists() and not resume and not force:
        screen.warn(f"{path} holds an interrupted evaluation; starting over (--resume would go on with it)")
    with in_use(path):
        with screen.bar(loaded.spec) as bar:
            journal = KeptJournal(path, folder, stop=stop, progress=shown(bar))
            try:
                result = measure(
                    loaded, subject.data.subset(choice.rows), eps=choice.eps, norm=subject.norm, indices=choice.indices,
                    journal=journal, resume=resume, **how,
                )  # fmt: skip
                record, fates = result.record, result.fates
                fresh = True
            except AlreadyDone as done:
                record, fates, fresh = done.record, done.fates, False
            except Interrupted as error:
                raise Halted(str(error).partition(":")[0], {"--model": loaded.spec}) from error

        def keep() -> Path:
            where = save(record, fates, folder, publish=publish, screen=screen)
            if publish and loaded.folder is not None and writable(loaded.folder):
                record.save(loaded.folder, fates)  # so that the run can be compared by its name
            return where

        where = ranks.first(keep)
        journal.finish()
    show(record, where, fresh=fresh, screen=screen)
    if publish:
        screen.note(f"tables {folder / f'{slug(record.dataset.name)}-{record.norm}'}.csv, .md and .svg")
    return record


def show(record: Record, path: Path, *, fresh: bool, screen: Screen) -> None:
    """The curve as a table, what there is to doubt, and what it cost."""
    if screen.as_json:
        screen.json({**record.model_dump(mode="json", by_alias=True), "path": str(path)})
        return
    digits = 2 if record.n >= 10_000 else 1
    rows = [
        (
            point.eps_text,
            f"{100 * point.accuracy:.{digits}f}",
            f"{100 * point.ci_low:.{digits}f} - {100 * point.ci_high:.{digits}f}",
            f"{point.robust}/{point.n}",
        )
        for point in record.curve
    ]
    screen.table(("eps", "accuracy %", "95 % interval", "robust"), rows)
    if record.corruptions is not None:
        errors = [
            (name, *(f"{100 * error:.{digits}f}" for error in row)) for name, row in record.corruptions.errors.items()
        ]
        screen.table(("error %", "1", "2", "3", "4", "5"), errors)
        screen.say(f"mean corruption error {100 * record.corruptions.mce:.{digits}f} % (not normalised)")
    about = [f"clean {100 * record.clean:.{digits}f} %", f"area under the curve {100 * record.auc:.{digits}f} %"]
    if record.median_norm is not None:
        about.append(f"median distance {record.median_norm:.4g}")
    screen.say(", ".join(about))
    for flag in record.flags:
        screen.say(f"{flag.severity}: {flag.name}: {flag.detail}")
    screen.say(
        f"{record.seconds:.1f} s, {record.forwards:,} forward and {record.backwards:,} backward passes"
        if fresh
        else "measured before: nothing was run"
    )
    screen.say(f"record {path}")
