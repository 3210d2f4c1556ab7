"""`advbench train`: one recipe, or a product of several, trained into run folders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench import consent, ranks
from advbench.cli import complete, options
from advbench.cli.cluster import Job, Place, parse_place, slurm
from advbench.cli.console import Screen
from advbench.cli.grid import Tuning, check_flags
from advbench.cli.help import DATA, MAIN, OUTPUT, TRAINING
from advbench.cli.settings import split_names
from advbench.cli.stop import Halted, Stop
from advbench.defaults.run_folders import Task, choose_data, describe, place_runs, recipe_fields
from advbench.defaults.tuning import SELECT, combinations, parse_grid
from advbench.eps import TRAINING_NORMS
from advbench.errors import Interrupted, UserError, shortened, unknown
from advbench.models import check_arch
from advbench.outlook import duration
from advbench.registry import LIBRARIES, entries, find

if TYPE_CHECKING:
    from advbench.checkpoint import RunCard
    from advbench.cli.watch import Runs
    from advbench.recipe import Recipe

LOGS = ("tensorboard",)
AGAIN = ".again"  # in a run folder: which command trained once more what was there
_RECIPE = "[default: the recipe's]"


def command(
    context: typer.Context,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="LIST",
            help="act, trades, pgd-at, ... [default: act]",
            rich_help_panel=MAIN,
            autocompletion=complete.methods,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        options.dataset(
            "digits, cifar10, npz:FILE, imagefolder:DIR, module:callable, ... [default: cifar10 with a GPU, else "
            "digits]"
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="resnet18, torchvision:NAME, timm:NAME, module:callable, ... [default: resnet18 for colour images, "
            "small_cnn for grey ones]",
            rich_help_panel=MAIN,
            autocompletion=complete.architectures,
        ),
    ] = None,
    eps: Annotated[
        str | None,
        options.eps("LIST", "size of the perturbation [default: the dataset's usual one]"),
    ] = None,
    norm: Annotated[
        str | None,
        options.norm("linf, l2, l1 or fourier-linf [default: linf]", complete.training_norms),
    ] = None,
    mean: options.Mean = None,
    std: options.Std = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="WEIGHTS",
            help="start from a weights file, or a run's weights, that fit --arch [default: new weights]",
            rich_help_panel=DATA,
            autocompletion=complete.models,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="N", min=1, help=f"passes over the data {_RECIPE}", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", min=1, help=f"images in a batch {_RECIPE}", rich_help_panel=TRAINING),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="X", help=f"learning rate {_RECIPE}", rich_help_panel=TRAINING),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="FIELD=VALUE",
            help="a field of the recipe, such as optim.lr=0.05; repeatable",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="the method's training as its authors released it, such as paper: advbench list methods NAME shows it "
            "[default: the recipe for the dataset]",
            rich_help_panel=TRAINING,
            autocompletion=complete.presets,
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="FIELD=LIST",
            help="values of a field to choose from, such as optim.lr=0.05,0.1; repeatable: every combination is "
            "trained, and scored on held-out images",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            "--select",
            metavar="NAME",
            help="score of --grid: margin (withstands APGD on margins), or clean [default: margin]",
            rich_help_panel=TRAINING,
            autocompletion=complete.words(*SELECT),
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="a recipe in TOML", rich_help_panel=TRAINING)
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            "--seed", metavar="LIST", help="seed of all random numbers [default: 0]", rich_help_panel=TRAINING
        ),
    ] = None,
    out: Annotated[Path | None, options.out("runs/METHOD-DATASET-ARCH-NORM-EPS-sSEED")] = None,
    name: options.Name = None,
    log: Annotated[
        str | None,
        typer.Option(
            "--log",
            metavar="NAME",
            help="tensorboard: write its event files too",
            rich_help_panel=OUTPUT,
            autocompletion=complete.words(*LOGS),
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only show the recipe and its estimated cost", rich_help_panel=OUTPUT)
    ] = False,
    resume: options.Resume = False,
    force: options.Force = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    on: options.On = "local",
    trust_pickle: options.TrustPickle = False,
    trust_code: options.TrustCode = False,
) -> None:
    """Train a robust classifier.

    With comma lists for --method, --eps or --seed, every combination is trained, each into its own folder under --out.
    With --grid the settings of each method are chosen too, on images that no run was trained on.

    Without --dataset and --arch, resnet18 is trained on cifar10 if there is a CUDA device, else small_cnn on the
    embedded digits. To share each batch among several GPUs, type

    \b
      torchrun --nproc-per-node N -m advbench train ...
    """
    with ranks.joined(), options.consent(context).given(), Screen(as_json=as_json).ready() as screen:
        flags = Flags(
            methods=split_names([method]) if method is not None else (),
            eps=split_names([eps]) if eps is not None else (),
            seeds=read_seeds(seed) if seed is not None else (),
            dataset=dataset,
            arch=arch,
            norm=norm,
            recipe=recipe_fields(
                mean=mean, std=std, **{"epochs": epochs, "batch_size": batch_size, "optim.lr": lr, "init": init}
            ),
            sets=settings or (),
            preset=preset,
            grid=grid or (),
            select=select,
            config=config,
            device=device,
            precision=precision,
            out=out,
            name=name,
            resume=resume,
            force=force,
            dry_run=dry_run,
            log=log,
            on=on,
        )
        train(flags, screen=screen)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of `advbench train`. None or empty: a default is chosen later.

    `recipe` holds fields of the recipe that have a flag of their own, by their dotted names.
    """

    methods: Sequence[str] = ()
    eps: Sequence[str] = ()
    seeds: Sequence[int] = ()
    dataset: str | None = None
    arch: str | None = None
    norm: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    preset: str | None = None
    grid: Sequence[str] = ()
    select: str | None = None
    config: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    out: Path | None = None
    name: str | None = None
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    log: str | None = None
    on: str = "local"


def train(flags: Flags, *, screen: Screen | None = None) -> list[Path]:
    """Train every combination of the methods, eps and seeds, and return the run folders.

    Raises UserError for wrong flags, before any training, and Interrupted after a signal.
    """
    screen = screen or Screen()
    own = _recipe_of_out(flags)
    with consent.reading(own).given():
        return _train(flags if own is None else replace(flags, config=own), screen)


def _recipe_of_out(flags: Flags) -> Path | None:
    """The recipe of the run in --out, if that run is to be resumed and nothing names another recipe."""
    named = (flags.methods, flags.eps, flags.seeds, flags.dataset, flags.arch, flags.norm, flags.preset, flags.config)
    if not flags.resume or flags.out is None or any(named) or not (flags.out / "recipe.toml").is_file():
        return None
    return flags.out / "recipe.toml"


def _train(flags: Flags, screen: Screen) -> list[Path]:
    place = parse_place(flags.on)
    check_flags(flags.grid, flags.select, eps=flags.eps, out=flags.out, on=flags.on)
    recipes, device, why = resolve(flags, here=place is None)
    if flags.name is not None and (len(recipes) > 1 or not flags.name.strip()):
        raise UserError("--name is the name of one model, and not empty: train the others by themselves")
    tuning = _tuning(recipes, flags, screen) if flags.grid else None
    if flags.dry_run and not isinstance(place, slurm.Place):
        if tuning is not None:
            tuning.announce(screen, start="# ")
        return _dry_run(recipes, device, why, screen)
    _check_methods(recipes, [*flags.sets, *flags.grid], screen)
    names = tuning.names if tuning else ()
    tasks = ranks.first(lambda: place_runs(recipes, flags.out, resume=flags.resume, force=flags.force, names=names))
    if tuning is not None:
        tuning.announce(screen)
    if place is not None:
        _train_on_cluster(place, tasks, flags, screen)
        return [task.out for task in tasks]
    from advbench.cli.watch import Runs

    with Stop() as stop:
        runs = Runs([_work(task) for task in tasks])
        for number, task in enumerate(tasks, start=1):
            count = f"{number} of {len(tasks)}: " if len(tasks) > 1 else ""
            screen.say(f"{count}{describe(task.recipe, why)}, on {device}, into {task.out}")
            ranks.first(lambda task=task: _fetch(task.recipe.dataset, stop, screen))  # type: ignore[misc]
            try:
                runs.number = number - 1
                train_one = partial(_train_one, task, flags, device, runs, stop, screen)
                if tuning is None:
                    train_one()
                else:
                    tuning.run(task, train_one, resume=flags.resume, device=device, stop=stop, screen=screen)
            except Interrupted as error:
                missing = {} if len(tasks) > 1 or flags.out else {"--out": str(task.out)}
                raise Halted(str(error), missing) from error
    if tuning is not None:
        tuning.show(screen)
    return [task.out for task in tasks]


def _tuning(recipes: Sequence[Recipe], flags: Flags, screen: Screen) -> Tuning:
    """The grid of the flags, whose images are fetched first."""
    assert flags.out is not None
    with Stop() as stop:
        ranks.first(lambda: _fetch(recipes[0].dataset, stop, screen))
    return Tuning(recipes, [*parse_grid(flags.grid)], flags.out, flags.select or SELECT[0])


def resolve(flags: Flags, *, here: bool) -> tuple[list[Recipe], str, str]:
    """The recipes, the device, and the reason for this dataset and architecture in words.

    `here`: whether they are trained on this machine. Raises UserError for wrong flags.
    """
    if flags.log is not None:
        if flags.log not in LOGS:
            raise unknown("log", flags.log, LOGS)
        from advbench.cli.watch import check_log

        check_log()
    given = _given(flags.config, flags.sets)
    dataset, arch = flags.dataset or given.get("dataset"), flags.arch or given.get("model.arch")
    for name in flags.methods:
        find("methods", name)
    if flags.norm is not None and flags.norm not in TRAINING_NORMS:
        raise unknown("norm", flags.norm, TRAINING_NORMS)
    if arch:
        check_arch(arch)
    if dataset is not None:
        from advbench.data import parse

        parse(dataset)
    from advbench.defaults.target import pick_device

    device = pick_device(flags.device if here else "auto")  # the machines of a cluster may have other devices
    dataset, arch, why = choose_data(dataset, arch, cuda=device.type == "cuda")
    from advbench.recipe import Recipe

    fixed = {**flags.recipe, "precision": None if flags.precision == "auto" else flags.precision}
    grid = parse_grid(flags.grid)
    recipes = [
        Recipe.resolve(
            method=method, dataset=dataset, arch=arch, norm=flags.norm, eps=size, preset=flags.preset,
            config=flags.config, flags={**fixed, "seed": seed}, sets=(*flags.sets, *sets),
        )
        for method, size in product(flags.methods or (None,), flags.eps or (None,))
        for sets in combinations(grid, method, flags.methods)
        for seed in flags.seeds or (None,)
    ]  # fmt: skip
    once = {recipe.sha256: recipe for recipe in reversed(recipes)}  # one written twice is trained once
    return list(once.values())[::-1], str(device), why


def read_seeds(text: str) -> list[int]:
    """The whole numbers in a comma list. Raises UserError."""
    names = split_names([text])
    if not all(name.isascii() and name.isdecimal() and len(name) < 20 for name in names):
        raise UserError(f"--seed {shortened(text)}: write whole numbers from 0, such as 0 or 0,1,2")
    return list(map(int, names))


def _given(config: Path | None, sets: Sequence[str]) -> dict[str, str]:
    """The dataset and architecture that a recipe file and --set name. Raises UserError."""
    from advbench.recipe import parse_set
    from advbench.recipe.trees import leaves, read_toml

    found = leaves(read_toml(config)) if config is not None else {}
    found |= dict(map(parse_set, sets))
    return {name: str(found[name]) for name in ("dataset", "model.arch") if name in found}


def _check_methods(recipes: Sequence[Recipe], sets: Sequence[str], screen: Screen) -> None:
    """Let every method check its recipe before the first one trains, and say which `sets` it does not use.

    Raises UserError.
    """
    from advbench.methods.base import make

    unused: dict[str, None] = {}
    for recipe in recipes:
        method, entry = make(recipe), entries("data").get(recipe.dataset)
        if entry is not None and "num_classes" in entry.about:
            method.check(recipe, entry.about["num_classes"])
        for name in dict.fromkeys(text.partition("=")[0] for text in sets):
            if name in method.unused:
                unused[f"{recipe.method.name} does not use {name}"] = None
    for text in unused:
        screen.note(text)


def _fetch(dataset: str, stop: Stop, screen: Screen) -> None:
    """Download the training images, with a progress bar, unless they are cached."""
    from advbench.data import cache, load, parse

    entry, _ = parse(dataset)
    if "sources" in entry.about and not (cache.cache_folder() / entry.name / "train.npz").exists():
        with screen.fetching(stop.check) as fetching:
            load(dataset, "train", progress=fetching)


def _work(task: Task) -> float:
    """How long the training of a run takes compared with others of the same data: 0 if it is finished."""
    from advbench.trainer import folder

    if task.going_on and folder.finished(task.out, task.recipe):
        return 0.0
    about = find("methods", task.recipe.method.name).about
    return float(task.recipe.epochs * about.get("cost", 1.0))


def _finished(task: Task, flags: Flags) -> str:
    again = "--force" if flags.out else f"--force with --out {quote(str(task.out))}"
    kept = "; its name stays, --name is for a new run" if flags.name is not None else ""
    return f"{task.out} is finished: nothing to do ({again} trains it again{kept})"


def _train_one(task: Task, flags: Flags, device: str, runs: Runs, stop: Stop, screen: Screen) -> None:
    """Train one run, unless it is finished, and print its summary."""
    from advbench.cli.watch import ScreenWatch
    from advbench.trainer import folder, train

    if task.going_on and folder.finished(task.out, task.recipe):
        screen.note(_finished(task, flags))
    else:
        with screen.bar("") as bar:
            watch = ScreenWatch(bar, stop, log=flags.log, runs=runs)
            how: dict[str, Any] = {"device": device, "resume": flags.resume, "force": flags.force, "name": flags.name}
            train(task.recipe, task.out, watch=watch, **how)
    _show(task.out, screen)


def _train_on_cluster(place: Place, tasks: Sequence[Task], flags: Flags, screen: Screen) -> None:
    """Train the runs that are not finished as tasks of a cluster."""
    from advbench.files import Held, locked
    from advbench.trainer import folder

    left = [task for task in tasks if not (task.going_on and folder.finished(task.out, task.recipe))]
    for task in tasks:
        if task not in left:
            screen.note(_finished(task, flags))
            _show(task.out, screen)
    if not left:
        return
    if isinstance(place, slurm.Place) and flags.dry_run:
        slurm.show_script(place, [str(task.out) for task in left], flags.device, screen)
        return
    with Stop() as stop, place.connected(flags.device, stop) as cluster, screen.bar("") as bar:
        screen.say(f"{len(left)} run{'s' * (len(left) > 1)} on {cluster.about}")
        for task in left:
            if flags.force and task.out.exists():
                with locked(task.out / folder.LOCK, timeout=0):
                    pass  # else another process writes there
        again = {"again": f"{time.time_ns()}"} if flags.force else {}
        jobs = [
            Job(
                str(task.out),
                {
                    "recipe": task.recipe.tree(),
                    "out": str(task.out),
                    "device": cluster.device,
                    "log": flags.log,
                    "name": flags.name,
                },
                again,
            )
            for task in left
        ]

        recipes = {str(task.out): task.recipe for task in left}

        def started(job: Job) -> None:
            with suppress(Held):  # by its task, which does the same
                _give_up(Path(job.name), recipes[job.name], again["again"], timeout=0)

        def done(_: Job, out: str) -> None:
            _show(Path(out), screen)

        cluster.run(train_task, jobs, bar=bar, stop=stop, done=done, started=started if again else None)


def _give_up(place: Path, recipe: Recipe, again: str, timeout: float = 60.0) -> None:
    """Give up the run that is in `place`, once for each `again`. Raises Held where another process trains there."""
    from advbench.files import locked, write_atomic
    from advbench.trainer import folder

    begun = place / AGAIN
    with locked(place / folder.LOCK, timeout):
        if not begun.is_file() or begun.read_text(encoding="utf-8") != again:
            folder.begin(place, recipe)
            write_atomic(begun, again)


def train_task(
    *,
    recipe: dict[str, Any],
    out: str,
    device: str,
    log: str | None,
    name: str | None,
    again: str = "",
    stop: Stop,
    screen: Screen,
) -> str:
    """A task of a cluster: train into the folder `out`, resuming what was saved.

    `again`: what names a command that trains what is there once more.
    """
    from advbench.cli.watch import ScreenWatch
    from advbench.recipe import Recipe
    from advbench.trainer import train

    place, asked = Path(out), Recipe.read(recipe)
    if again:
        _give_up(place, asked, again)
    with screen.bar("") as bar:
        watch = ScreenWatch(bar, stop, log=log)
        return str(train(asked, place, device=device, resume=True, name=name, watch=watch))


def _show(out: Path, screen: Screen) -> None:
    """Print the summary and flags of a finished run, or its card as JSON."""
    from advbench.checkpoint import read_card

    card = read_card(out)
    if screen.as_json:
        screen.json({"run": str(out), **card.model_dump(mode="json", by_alias=True)})
    else:
        screen.say(summary(out, card))
        if ":" in card.model.arch and card.model.arch.partition(":")[0] not in LIBRARIES:
            screen.note(f"to evaluate it: advbench evaluate --model {quote(str(out))} --arch {card.model.arch}")
        for flag in card.flags:
            screen.warn(f"{flag.name}: {flag.detail}")


def summary(out: Path, card: RunCard) -> str:
    """One line about a finished run."""
    best: Any = card.results.get("best") or {}
    scores = f", clean {best['clean']:.1%}, PGD {best['robust']:.1%} on held-out images" if "clean" in best else ""
    cost: Any = card.cost
    return f"trained in {duration(cost['seconds'])}: epoch {best['epoch']} is the best{scores}; {out}"


def _dry_run(recipes: Sequence[Recipe], device: str, why: str, screen: Screen) -> list[Path]:
    """Print each recipe, as TOML that --config takes, and its estimated cost."""
    from advbench.trainer import estimate

    for recipe in recipes:
        cost = estimate(recipe, device=device)
        if screen.as_json:
            screen.json({"recipe": recipe.tree(), "estimate": asdict(cost)})
            continue
        epochs = f"{cost.epochs} epoch{'s' * (cost.epochs > 1)}"
        screen.say(f"# {describe(recipe, why)} on {cost.device} in {cost.precision}: nothing is trained or written")
        screen.say(
            f"# about {duration(cost.total_seconds)}: {epochs} of {cost.epoch_seconds:.2g} s, "
            f"{cost.images_per_s:,.0f} images/s, {cost.forwards_per_image:g} forward and "
            f"{cost.backwards_per_image:g} backward passes an image, {cost.peak_memory / 2**30:.1f} GiB"
        )
        screen.text(recipe.to_toml())
    return []
