"""`advbench evaluate`: accuracy against eps under the worst case of a set of attacks, saved as a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from advbench import ranks
from advbench.cli import complete, options
from advbench.cli.cluster import Job, Place, parse_place, slurm
from advbench.cli.console import Screen
from advbench.cli.help import DATA, MAIN, MEASURE, OUTPUT
from advbench.cli.settings import parse_settings, split_names
from advbench.cli.stop import Halted, Stop
from advbench.defaults.choice import Choice, check_asked, choose_points
from advbench.eps import CORRUPTIONS
from advbench.errors import Interrupted, UserError, unknown
from advbench.files import check_writable, writable
from advbench.registry import find

if TYPE_CHECKING:
    import torch

    from advbench.defaults.target import Target
    from advbench.evaluator import Series, Settings
    from advbench.evaluator.adversarials import Adversarials
    from advbench.evaluator.plan import Plan
    from advbench.record import Record


def command(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="SPEC",
            help="run folder, weights file, robustbench:NAME, module:NAME, ...; repeatable [default: the newest run]",
            rich_help_panel=MAIN,
            autocompletion=complete.models,
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        options.attack("pgd, ..., or module:name of your own; repeatable: the worst case counts [default: autoattack]"),
    ] = None,
    dataset: options.Dataset = None,
    eps: Annotated[
        str | None,
        options.eps(
            "LIST",
            "sizes of the perturbation, such as 0,2/255,8/255 [default: 0 to 2 x the training eps, or the usual "
            "eps of the dataset]",
        ),
    ] = None,
    norm: options.Norm = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            metavar="N",
            help="number of images [default: 1000, or all if there are fewer]",
            rich_help_panel=MAIN,
        ),
    ] = None,
    arch: options.Arch = None,
    mean: options.Mean = None,
    std: options.Std = None,
    abstain: options.Abstain = None,
    subset: Annotated[
        str,
        typer.Option(
            "--subset",
            metavar="WHICH",
            help="which images: first, random:SEED, or a file of positions in the split",
            rich_help_panel=DATA,
            autocompletion=complete.words("first", "random:"),
        ),
    ] = "first",
    settings: options.Set = None,
    attack_budget: options.AttackBudget = None,
    adversarials: Annotated[
        list[Path] | None,
        typer.Option(
            "--adversarials",
            metavar="FILE",
            help="adversarial images made elsewhere (.npz: x_adv, index), which count where they fool the model; "
            "repeatable",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    seed: options.Seed = 0,
    curve: Annotated[
        str,
        typer.Option(
            "--curve",
            metavar="NAME",
            help="fast, or exact (every attack at each eps)",
            rich_help_panel=MEASURE,
            autocompletion=complete.words("fast", "exact"),
        ),
    ] = "fast",
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="own, or reference (pyautoattack)",
            rich_help_panel=MEASURE,
            autocompletion=complete.words("own", "reference"),
        ),
    ] = "own",
    probes: Annotated[
        str,
        typer.Option(
            "--probes",
            metavar="on|off",
            help="off: no look for masked gradients, which makes it suspect",
            rich_help_panel=MEASURE,
            autocompletion=complete.words("on", "off"),
        ),
    ] = "on",
    certify: Annotated[
        str,
        typer.Option(
            "--certify",
            metavar="WHEN",
            help="prove images to be robust: after the attacks, or first (attacks skip what is proved); off",
            rich_help_panel=MEASURE,
            autocompletion=complete.words("off", "after", "first"),
        ),
    ] = "off",
    certify_seconds: Annotated[
        float,
        typer.Option(
            "--certify-seconds",
            metavar="S",
            help="about how long a proof may take for an image at an eps",
            rich_help_panel=MEASURE,
        ),
    ] = 1.0,
    again: Annotated[
        Path | None,
        typer.Option(
            "--again",
            metavar="RECORD",
            help="repeat this record and compare the outcome",
            rich_help_panel=MEASURE,
            autocompletion=complete.records,
        ),
    ] = None,
    out: Annotated[Path | None, options.out("--leaderboard, else the run folder, else .")] = None,
    leaderboard: Annotated[
        Path | None,
        typer.Option(
            "--leaderboard",
            metavar="DIR",
            help="add the record to the tables in this folder",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(
            "--save-baseline",
            metavar="FILE",
            help="write the record to this .json too, the baseline of compare",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    name: options.Name = None,
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="start over what was interrupted", rich_help_panel=OUTPUT),
    ] = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    on: options.On = "local",
    config: options.Flags = None,
    trust_pickle: options.TrustPickle = False,
    trust_code: options.TrustCode = False,
) -> None:
    """Measure accuracy against eps.

    The result is a record. It goes to --leaderboard or --out, else to the run folder, else to ./records.

    On a CPU a long evaluation shares the images among processes, one for each of PyTorch's threads
    (OMP_NUM_THREADS). To share them among several GPUs, type

    \b
      torchrun --nproc-per-node N -m advbench evaluate ...
    """
    with ranks.joined(), options.consent(context).given(), Screen(as_json=as_json).ready() as screen:
        if again is not None:
            from advbench.cli.again import repeat

            check_alone(context)
            repeat(
                again,
                model=model[-1] if model else None,
                device=device,
                leaderboard=leaderboard,
                baseline=save_baseline,
                says={
                    "--attack": split_names(attack or []),
                    "--arch": [arch] if arch else [],
                    "--dataset": [dataset] if dataset else [],
                },
                screen=screen,
                argv=context.obj or (),
                adversarials=adversarials or (),
            )
            return
        flags = Flags(
            models=tuple(model or ()),
            attacks=tuple(split_names(attack or ["autoattack"])),
            eps=eps,
            n=n,
            subset=subset,
            dataset=dataset,
            arch=arch,
            mean=mean,
            std=std,
            abstain=abstain,
            norm=norm,
            name=name,
            engine=engine,
            curve=curve,
            probes=probes,
            seed=seed,
            device=device,
            precision=precision,
            settings=parse_settings(settings or []),
            attack_budget=attack_budget,
            adversarials=tuple(adversarials or ()),
            certify=certify,
            certify_seconds=certify_seconds,
            leaderboard=leaderboard,
            save_baseline=save_baseline,
            out=out,
            resume=resume,
            force=force,
            on=on,
            dry_run=dry_run,
        )
        evaluate(flags, screen=screen, argv=context.obj or ())


def check_alone(context: typer.Context) -> None:
    """Raise UserError for flags beside --again that its record has settled already."""
    fitting = {"again", "model", "device", "leaderboard", "save_baseline", "trust_pickle", "trust_code", "as_json"}
    fitting |= {"attack", "arch", "dataset", "adversarials"}  # which may repeat what the record says
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and parameter.name not in fitting and options.was_given(context, parameter.name)
    ]
    if given:
        raise UserError(
            f"--again repeats its record, which {', '.join(given)} would change: use only --model, --device, "
            "--leaderboard, --save-baseline, --trust-pickle, --trust-code and --json with it, and its own --attack, "
            "--arch, --dataset and --adversarials"
        )
    if len(context.params["model"] or ()) > 1:
        raise UserError("--again repeats the record of one model: give one --model, the place of its weights now")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of `advbench evaluate`. None: a default is chosen later. No `models`: the newest run."""

    models: Sequence[str] = ()
    attacks: Sequence[str] = ("autoattack",)
    eps: str | None = None
    n: int | None = None
    subset: str = "first"
    dataset: str | None = None
    arch: str | None = None
    mean: str | None = None
    std: str | None = None
    abstain: str | None = None
    norm: str | None = None
    name: str | None = None
    engine: str = "own"
    curve: str = "fast"
    probes: str = "on"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    attack_budget: int | None = None
    adversarials: Sequence[Path] = ()
    certify: str = "off"
    certify_seconds: float = 1.0
    leaderboard: Path | None = None
    save_baseline: Path | None = None
    out: Path | None = None
    resume: bool = False
    force: bool = False
    on: str = "local"
    dry_run: bool = False


@dataclass(frozen=True)
class Task:
    """The evaluation of one model: the model, the eps and images, the settings, and the folder of the record.

    `question`: what its journal is named after; `run`: the attacks and how they are run.
    """

    target: Target
    choice: Choice
    settings: Settings
    folder: Path
    question: str
    run: Plan

    def about(self, flags: Flags) -> str:
        """What is measured, in one line."""
        target, choice = self.target, self.choice
        return (
            f"{target.loaded.spec}{'' if flags.models else ' (newest run)'}: {'+'.join(flags.attacks)}, {target.norm} "
            f"eps {choice.eps_text} ({choice.about_eps}), {choice.about_rows} of {target.data.name} "
            f"({target.about_data}), on {self.settings.device}"
        )


class Kept(NamedTuple):
    """A record, the file that holds it, and whether it was measured just now."""

    record: Record
    path: Path
    fresh: bool


def evaluate(
    flags: Flags, *, screen: Screen | None = None, argv: Sequence[str] = (), stop: Stop | None = None
) -> list[Record]:
    """Evaluate each model, save its record, print its curve, and return the records.

    `stop`: what handles signals already. Raises UserError for wrong flags, before any model is measured, and
    Interrupted after a signal.
    """
    return [kept.record for kept in evaluate_each(flags, screen=screen, argv=argv, stop=stop)]


def evaluate_each(
    flags: Flags, *, screen: Screen | None = None, argv: Sequence[str] = (), stop: Stop | None = None
) -> list[Kept]:
    """Like `evaluate`, with what became of each record."""
    screen = screen or Screen()
    norm = check_flags(flags)
    place = parse_place(flags.on)
    if place is not None and flags.force:
        raise UserError(
            f"--force starts over, but the tasks of --on {flags.on} go on with what was saved: leave it out"
        )
    from advbench.defaults import target as targets
    from advbench.evaluator import Series
    from advbench.evaluator.adversarials import read_adversarials

    others = read_adversarials(flags.adversarials)
    names = list(flags.models) or [targets.newest_run()]
    if isinstance(place, slurm.Place) and flags.dry_run:
        slurm.show_script(place, names, flags.device, screen)
        return []
    if place is not None and not flags.dry_run:
        return evaluate_on_cluster(place, names, flags, argv, screen)
    device = targets.pick_device(flags.device)
    if str(device) == "cuda" and ranks.world() > 1:
        device = targets.pick_device(f"cuda:{ranks.local_rank()}")
    with nullcontext(stop) if stop else Stop() as stop:
        cache: targets.Cache = {}
        tasks = []
        for name in names:
            stop.check()
            with screen.fetching(stop.check) as fetching:
                load = partial(
                    targets.load_target, name, dataset=flags.dataset, arch=flags.arch,
                    norm=None if norm == CORRUPTIONS else norm, device=device,
                    mean=flags.mean, std=flags.std, abstain=flags.abstain, fetching=fetching, cache=cache,
                )  # fmt: skip
                target = ranks.in_turn(load)
            if norm == CORRUPTIONS:
                target = replace(target, norm=CORRUPTIONS, train_eps=None)
            tasks.append(prepare(flags, target, device, argv, others))
        for task in tasks if flags.dry_run else ():
            _show_plan(task, flags, screen)
        if flags.dry_run:
            return []
        works = [work(task) for task in tasks] if len(tasks) > 1 else [1.0]
        series = Series(works)
        return [measure(task, flags, series, stop=stop, screen=screen) for task in tasks]


def check_flags(flags: Flags) -> str | None:
    """The norm, if the flags decide it, else None. Raises UserError for flags that no model could make right."""
    if flags.resume and flags.force:
        raise UserError("--resume goes on with what was interrupted, and --force starts over: choose one")
    for name in flags.attacks:
        find("attacks", name)
    if (flags.mean, flags.std, flags.abstain) != (None, None, None):
        from advbench.checkpoint import check_reading

        check_reading(flags.mean, flags.std, flags.abstain)
    if flags.leaderboard is not None:
        from advbench.leaderboard import check_folder

        check_folder(flags.leaderboard)
    if flags.save_baseline is not None:
        from advbench.cli.keep import check_baseline

        if len(flags.models) > 1:
            raise UserError("--save-baseline writes the record of one model: give one --model")
        check_baseline(flags.save_baseline)
    if flags.probes not in ("on", "off"):
        raise unknown("value of --probes", flags.probes, ("on", "off"))
    from advbench.evaluator.settings import CERTIFY

    if flags.certify not in CERTIFY:
        raise unknown("value of --certify", flags.certify, CERTIFY)
    if flags.certify == "off" and flags.certify_seconds != Flags.certify_seconds:
        raise UserError("--certify-seconds limits proofs, which are off: add --certify after, or first")
    if flags.name is not None and (len(flags.models) > 1 or not flags.name.strip()):
        raise UserError("--name is the name of one model, and not empty: evaluate the others by themselves")
    corrupt = CORRUPTIONS in flags.attacks
    if corrupt and (len(flags.attacks) > 1 or flags.norm not in (None, CORRUPTIONS)):
        raise UserError("corruptions have severities, but neither norm nor eps: evaluate them by themselves")
    norm = CORRUPTIONS if corrupt else flags.norm
    # Only a run may have been trained in another norm.
    other_norms = any(Path(name).is_dir() for name in flags.models or ["runs"])
    check_asked(eps=flags.eps, norm=norm or (None if other_norms else "linf"), n=flags.n, subset=flags.subset)
    return norm


def prepare(
    flags: Flags, target: Target, device: torch.device, argv: Sequence[str], others: Sequence[Adversarials]
) -> Task:
    """The evaluation of one model. Raises UserError for settings that do not fit it and for an unwritable folder."""
    from advbench.evaluator import Settings
    from advbench.evaluator.evaluate import planned

    choice = choose_points(target, eps=flags.eps, n=flags.n, subset=flags.subset)
    settings = Settings(
        attack=tuple(flags.attacks),
        attack_settings=flags.settings,
        attack_budget=flags.attack_budget,
        eps=choice.eps,
        norm=target.norm,
        seed=flags.seed,
        device=device,
        precision=flags.precision,
        curve=flags.curve,
        probes=flags.probes == "on",
        engine=flags.engine,
        adversarials=others,
        certify=flags.certify,
        certify_seconds=flags.certify_seconds,
        indices=choice.indices,
        name=flags.name,
        command=("advbench", *argv),
    )
    run, question = planned(target.loaded, target.data.subset(choice.rows), settings)
    folder = flags.leaderboard or flags.out or target.loaded.folder or Path()
    check_writable(folder / "records")
    return Task(target, choice, settings, folder, question, run)


def _show_plan(task: Task, flags: Flags, screen: Screen) -> None:
    from advbench.cli.dry_run import show
    from advbench.cli.keep import journal_path
    from advbench.record import slug

    target = task.target
    out = task.folder / "records" / slug(target.data.name) / target.norm
    show(task.run, task.settings, target, n=len(task.choice.rows), first=task.about(flags), out=out, screen=screen)
    if journal_path(task.folder, task.question).exists():
        screen.note("an interrupted evaluation of this is kept: --resume continues it")


def work(task: Task) -> float:
    """How much work the evaluation is, compared with others."""
    from advbench.evaluator import expected_work

    return expected_work(task.target.loaded, task.target.data.subset(task.choice.rows), task.settings, task.run)


def measure(task: Task, flags: Flags, series: Series, *, stop: Stop, screen: Screen) -> Kept:
    """Evaluate one model, the next of the series, save its record and print its curve. Raises Halted after a signal."""
    from advbench.cli.keep import (
        AlreadyDone,
        KeptJournal,
        in_use,
        journal_path,
        of_other_questions,
        save,
        save_baseline,
        search_progress,
    )
    from advbench.evaluator import evaluate as measured
    from advbench.record import load_record, slug
    from advbench.record.record import record_path

    target, settings, folder = task.target, task.settings, task.folder
    loaded, publish = target.loaded, flags.leaderboard is not None
    screen.say(task.about(flags))
    screen.notes(target.data)
    path = journal_path(folder, task.question)
    if flags.resume and not path.exists() and (others := of_other_questions(path)):
        screen.note(
            f"interrupted evaluations of this model that asked something else are kept: {', '.join(map(str, others))}"
        )
    if path.exists() and not flags.resume and not flags.force:
        screen.warn(f"{path} holds an interrupted evaluation; starting over (--resume would continue it)")
    if path.exists() and flags.resume:
        screen.note(f"going on with {path}, whose time and passes count too")
    with in_use(path):
        with screen.bar(loaded.spec) as bar:
            journal = KeptJournal(path, folder, stop=stop, progress=search_progress(bar, series))
            try:
                data = target.data.subset(task.choice.rows)
                result = measured(loaded, data, settings, journal=journal, resume=flags.resume)
                record, fates, fresh = result.record, result.fates, True
                tallies = [one.line for one in result.tallies]
            except AlreadyDone as done:
                record, fates, fresh, tallies = done.record, done.fates, False, []
            except Interrupted as error:
                missing = {} if flags.models else {"--model": loaded.spec}  # the newest run may be another one then
                raise Halted(str(error), missing) from error
        series.next(skipped=not fresh)

        known = fresh and record_path(folder, record).exists()

        def keep() -> Path:
            where = save(record, fates, folder, publish=publish, fresh=fresh, screen=screen)
            if publish and loaded.folder is not None and writable(loaded.folder):
                record.save(loaded.folder, fates)  # so that `compare` finds it by the name of the run
            if flags.save_baseline is not None:
                save_baseline(record, fates, flags.save_baseline, screen)
            return where

        where = ranks.first(keep)
        journal.finish()
    show(record, where, fresh=fresh, screen=screen)
    for line in tallies:
        screen.say(line)
    if known:
        screen.note("that record was there before, with the same outcome: --resume shows it without measuring again")
    if flags.name is not None and (kept := ranks.first(lambda: load_record(where)[0].model.title)) != flags.name:
        screen.warn(
            f"record {record.id} was there before, under the name {kept}: change what tables call it with advbench "
            f"leaderboard DIR rename {record.id} NAME"
        )
    if publish:
        screen.note(f"tables {folder / f'{slug(record.dataset.name)}-{record.norm}'}.csv, .md and .svg")
    return Kept(record, where, fresh)


def evaluate_task(*, flags: Flags, argv: Sequence[str] = (), stop: Stop, screen: Screen) -> list[tuple[str, str, bool]]:
    """A task of a cluster: evaluate one model, resuming what was saved; each record as JSON, its path, if it is new."""
    found = evaluate_each(flags, screen=screen, argv=argv, stop=stop)
    return [(kept.record.model_dump_json(by_alias=True), str(kept.path), kept.fresh) for kept in found]


def evaluate_on_cluster(
    place: Place, models: Sequence[str], flags: Flags, argv: Sequence[str], screen: Screen
) -> list[Kept]:
    """Evaluate the models as tasks of a cluster, print each curve as it arrives, and return what they kept in order."""
    from advbench.record import Record

    found: dict[str, list[Kept]] = {}

    def done(job: Job, answer: list[tuple[str, str, bool]]) -> None:
        found[job.name] = [Kept(Record.model_validate_json(text), Path(path), new) for text, path, new in answer]
        for kept in found[job.name]:
            screen.say(f"{job.name}:")
            show(kept.record, kept.path, fresh=kept.fresh, screen=screen)

    with Stop() as stop, place.connected(flags.device, stop) as cluster, screen.bar("") as bar:
        screen.say(f"{len(models)} evaluation{'s' * (len(models) > 1)} on {cluster.about}")
        remote = replace(flags, device=cluster.device, resume=True, force=False, on="local")
        more = {"argv": tuple(argv)}
        jobs = [Job(model, {"flags": replace(remote, models=(model,))}, more) for model in models]
        cluster.run(evaluate_task, jobs, bar=bar, stop=stop, done=done)
    return [kept for model in models for kept in found[model]]


def show(record: Record, path: Path, *, fresh: bool, screen: Screen) -> None:
    """Print the curve, the flags and the cost of a record, or the record as JSON."""
    if screen.as_json:
        screen.json({**record.model_dump(mode="json", by_alias=True), "path": str(path)})
        return
    from advbench.statistics import decimals

    digits = decimals(record.n)
    screen.table(record.curve_columns, record.curve_rows())
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
    passes = (
        "passes not counted"
        if record.forwards is None or record.backwards is None
        else f"{record.forwards:,} forward and {record.backwards:,} backward passes"
    )
    screen.say(
        f"{record.seconds:.1f} s, {passes}"
        if fresh
        else f"measured before: nothing was run again (to repeat it: advbench evaluate --again {path})"
    )
    if fresh and (probes := getattr(record.environment, "probes", None)) and probes["forwards"]:
        screen.say(f"flags: {probes['seconds']:.1f} s, {probes['forwards']:,} forward passes to find them")
    if fresh and (proofs := getattr(record.environment, "certify", None)):
        saved = f", {proofs['skipped_passes']:,} passes of attacks saved" if "skipped_passes" in proofs else ""
        seconds = "time not counted" if proofs["seconds"] is None else f"{proofs['seconds']:.1f} s"
        screen.say(f"proofs: {seconds}{saved}")
    screen.say(f"record {path}")
