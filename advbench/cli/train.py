"""`advbench train`: a recipe, or a product of them, to run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench import ranks
from advbench.cli import options
from advbench.cli.cluster import Job, Place, connected, enter, parse_place
from advbench.cli.console import Bar, Screen
from advbench.cli.settings import split_names
from advbench.cli.stop import Halted, Stop
from advbench.defaults.run_folders import Task, choose_data, describe, place_runs
from advbench.errors import Interrupted, UserError, unknown
from advbench.registry import entries, find

if TYPE_CHECKING:
    from advbench.checkpoint import RunCard
    from advbench.recipe import Recipe

LOGS = ("tensorboard",)
_RECIPE = "[default: the recipe's]"


def command(
    context: typer.Context,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="LIST", help="act, trades, ... [default: act]"),
    ] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", metavar="LIST", help="8/255, ... [default: the dataset's usual size]")
    ] = None,
    dataset: options.Dataset = None,
    arch: options.Arch = None,
    norm: options.Norm = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", min=1, help="[default: the recipe's]")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="[default: the recipe's]")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", metavar="X", help="learning rate [default: the recipe's]")] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="LIST", help="of all that is drawn [default: 0]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the recipe, and what it will cost")] = False,
    log: Annotated[str | None, typer.Option("--log", metavar="NAME", help="tensorboard: its files, too")] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    settings: options.Set = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="a recipe in TOML")] = None,
    out: options.Out = None,
    resume: options.Resume = False,
    force: options.Force = False,
    trust_pickle: options.TrustPickle = False,
    on: options.On = "local",
    as_json: options.Json = False,
) -> None:
    """Train a robust classifier.

    Comma lists of methods, sizes and seeds train their product, one folder each under --out. Without a dataset:
    cifar10 and resnet18 where there is a CUDA device, else the embedded digits and small_cnn. Several GPUs share a
    run by torchrun --nproc-per-node N -m advbench train ...
    """
    with ranks.joined(), Screen(as_json=as_json).ready() as screen:
        flags = Flags(
            methods=split_names([method]) if method is not None else (),
            eps=split_names([eps]) if eps is not None else (),
            seeds=read_seeds(seed) if seed is not None else (),
            dataset=dataset,
            arch=arch,
            norm=norm,
            recipe={"epochs": epochs, "batch_size": batch_size, "optim.lr": lr},
            sets=settings or (),
            config=config,
            device=device,
            precision=precision,
            out=out,
            resume=resume,
            force=force,
            dry_run=dry_run,
            log=log,
            on=on,
        )
        train(flags, screen=screen)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of `advbench train`; None or nothing where a default is chosen later. `recipe` are fields of it."""

    methods: Sequence[str] = ()
    eps: Sequence[str] = ()
    seeds: Sequence[int] = ()
    dataset: str | None = None
    arch: str | None = None
    norm: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    config: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    out: Path | None = None
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    log: str | None = None
    on: str = "local"


def train(flags: Flags, *, screen: Screen | None = None) -> list[Path]:
    """Train the product of the methods, eps and seeds; the run folders.

    Raises UserError, before any training, for whatever does not fit; Interrupted when a signal came.
    """
    screen = screen or Screen()
    place = parse_place(flags.on)
    recipes, device, why = resolve(flags, here=place is None)
    if flags.dry_run:
        return _dry_run(recipes, device, why, screen)
    _check_methods(recipes)
    tasks = ranks.first(lambda: place_runs(recipes, flags.out, resume=flags.resume, force=flags.force))
    if place is not None:
        _there(place, tasks, flags, screen)
        return [task.out for task in tasks]
    with Stop() as stop:
        for number, task in enumerate(tasks, start=1):
            count = f"{number} of {len(tasks)}: " if len(tasks) > 1 else ""
            screen.say(f"{count}{describe(task.recipe, why)}, on {device}, into {task.out}")
            ranks.first(lambda task=task: _fetch(task.recipe.dataset, stop, screen))  # type: ignore[misc]
            try:
                _one(task, flags, device, stop, screen)
            except Interrupted as error:
                missing = {} if len(tasks) > 1 or flags.out else {"--out": str(task.out)}
                raise Halted(str(error).partition(":")[0], missing) from error
    return [task.out for task in tasks]


def resolve(flags: Flags, *, here: bool) -> tuple[list[Recipe], str, str]:
    """The recipes that the flags ask for, the device, and in words why this dataset and architecture.

    `here`: they are trained on this machine. Raises UserError for what there is not.
    """
    if flags.log is not None:
        if flags.log not in LOGS:
            raise unknown("log", flags.log, LOGS)
        from advbench.cli.watch import check_log

        check_log()
    given = _given(flags.config, flags.sets)
    dataset, arch = flags.dataset or given.get("dataset"), flags.arch or given.get("model.arch")
    for kind, names in (("methods", flags.methods), ("models", [arch] if arch else [])):
        for name in names:
            find(kind, name)
    if dataset is not None:
        from advbench.data import parse

        parse(dataset)
    from advbench.defaults.target import pick_device

    device = pick_device(flags.device if here else "auto")  # other machines may have what this one has not
    dataset, arch, why = choose_data(dataset, arch, cuda=device.type == "cuda")
    from advbench.recipe import Recipe

    fixed = {**flags.recipe, "precision": None if flags.precision == "auto" else flags.precision}
    recipes = [
        Recipe.resolve(
            method=method, dataset=dataset, arch=arch, norm=flags.norm, eps=size, config=flags.config,
            flags={**fixed, "seed": seed}, sets=flags.sets,
        )
        for method, size, seed in product(flags.methods or (None,), flags.eps or (None,), flags.seeds or (None,))
    ]  # fmt: skip
    return recipes, str(device), why


def read_seeds(text: str) -> list[int]:
    """The whole numbers in a comma list. Raises UserError."""
    names = split_names([text])
    if not all(name.isascii() and name.isdecimal() for name in names):
        raise UserError(f"--seed {text!r}: write whole numbers from 0, such as 0 or 0,1,2")
    return list(map(int, names))


def _given(config: Path | None, sets: Sequence[str]) -> dict[str, str]:
    """The dataset and architecture that a recipe file and --set name. Raises UserError."""
    from advbench.recipe import parse_set
    from advbench.recipe.trees import leaves, read_toml

    found = leaves(read_toml(config)) if config is not None else {}
    found |= dict(map(parse_set, sets))
    return {name: str(found[name]) for name in ("dataset", "model.arch") if name in found}


def _check_methods(recipes: Sequence[Recipe]) -> None:
    """Ask every method whether it can do what is asked, before the first one trains. Raises UserError."""
    from advbench.methods.base import make

    for recipe in recipes:
        entry = entries("data").get(recipe.dataset)
        if entry is not None and "num_classes" in entry.about:
            make(recipe).check(recipe, entry.about["num_classes"])


def _fetch(dataset: str, stop: Stop, screen: Screen) -> None:
    """Download the training images where that is needed, in a bar."""
    from advbench.data import cache, load, parse

    entry, _ = parse(dataset)
    if "sources" in entry.about and not (cache.cache_folder() / entry.name / "train.npz").exists():
        with screen.fetching(stop.check) as fetching:
            load(dataset, "train", progress=fetching)


def _one(task: Task, flags: Flags, device: str, stop: Stop, screen: Screen) -> None:
    from advbench.cli.watch import Shown
    from advbench.trainer import folder, train

    if task.going_on and folder.finished(task.out):
        screen.note(f"{task.out} is finished: nothing to do")
    else:
        with screen.bar("") as bar:
            watch = Shown(bar, stop, log=flags.log)
            train(task.recipe, task.out, device=device, resume=flags.resume, force=flags.force, watch=watch)
    _tell(task.out, screen)


def _there(place: Place, tasks: Sequence[Task], flags: Flags, screen: Screen) -> None:
    """Train the runs that are not finished as tasks of a Ray cluster."""
    from advbench.trainer import folder

    left = [task for task in tasks if not (task.going_on and folder.finished(task.out))]
    for task in tasks:
        if task not in left:
            screen.note(f"{task.out} is finished: nothing to do")
            _tell(task.out, screen)
        elif flags.force:
            folder.begin(task.out, task.recipe)  # here: a task that is started anew goes on with what is there
    with Stop() as stop, connected(place, flags.device) as cluster, screen.bar("") as bar:
        screen.say(f"{len(left)} runs on {cluster.about}")
        jobs = [
            Job(
                str(task.out),
                {"recipe": task.recipe.tree(), "out": str(task.out), "device": cluster.device, "log": flags.log},
            )
            for task in left
        ]
        cluster.run(train_task, jobs, bar=bar, stop=stop, done=lambda job, out: _tell(Path(out), screen))


def train_task(here: str, *, recipe: dict[str, Any], out: str, device: str, log: str | None) -> str:
    """A task of a cluster: train into the folder `out`, going on with what is there."""
    from advbench.cli.watch import Shown
    from advbench.recipe import Recipe
    from advbench.trainer import train

    enter(here)
    watch = Shown(Bar(), Stop(), log=log)
    return str(train(Recipe.read(recipe), Path(out), device=device, resume=True, watch=watch))


def _tell(out: Path, screen: Screen) -> None:
    """A finished run: its card, or a line about it."""
    from advbench.checkpoint import read_card

    card = read_card(out)
    if screen.as_json:
        screen.json({"run": str(out), **card.model_dump(mode="json", by_alias=True)})
    else:
        screen.say(summary(out, card))
        for flag in card.flags:
            screen.warn(f"{flag.name}: {flag.detail}")


def summary(out: Path, card: RunCard) -> str:
    """A finished run in one line."""
    from advbench.cli.watch import duration

    best: Any = card.results.get("best") or {}
    scores = f", clean {best['clean']:.1%}, PGD {best['robust']:.1%} on held-out images" if "clean" in best else ""
    cost: Any = card.cost
    return f"trained in {duration(cost['seconds'])}: epoch {best['epoch']} is the best{scores}; {out}"


def _dry_run(recipes: Sequence[Recipe], device: str, why: str, screen: Screen) -> list[Path]:
    """Show each recipe as TOML, which --config takes, and what it will cost."""
    from advbench.cli.watch import duration
    from advbench.trainer import estimate

    for recipe in recipes:
        cost = estimate(recipe, device=device)
        if screen.as_json:
            screen.json({"recipe": recipe.tree(), "estimate": asdict(cost)})
            continue
        screen.say(
            f"# {describe(recipe, why)} on {cost.device} in {cost.precision}: nothing is trained, nothing written"
        )
        screen.say(
            f"# about {duration(cost.total_seconds)}: {cost.epochs} epochs of {cost.epoch_seconds:.2g} s, "
            f"{cost.images_per_s:,.0f} images/s, {cost.forwards_per_image:g} forward and "
            f"{cost.backwards_per_image:g} backward passes an image, {cost.peak_memory / 2**30:.1f} GiB"
        )
        screen.text(recipe.to_toml())
    return []
