"""`advbench attack`: adversarial examples as files and as a picture."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.cli import complete, options
from advbench.cli.console import Screen
from advbench.cli.help import MAIN, OUTPUT
from advbench.cli.settings import parse_settings, split_names
from advbench.cli.stop import Halted, Stop
from advbench.defaults.choice import check_asked, choose_rows, choose_size
from advbench.eps import CORRUPTIONS, Eps
from advbench.errors import Interrupted, UserError, unknown
from advbench.files import check_writable
from advbench.registry import find

if TYPE_CHECKING:
    from advbench.cli.examples import Examples
    from advbench.defaults.target import Target

FILES = ("examples.csv", "examples.png", "attack.json")
FORMATS = {"npz": "examples.npz", "png": "images"}
ATTACKS = Path("attacks")
IMAGES = 64


def command(
    context: typer.Context,
    model: options.Model = None,
    attack_name: Annotated[
        str,
        options.attack("pgd, ..., or module:function of your own"),
    ] = "pgd",
    dataset: options.Dataset = None,
    eps: Annotated[
        str | None,
        options.eps(
            "SIZE",
            "size of the perturbation, such as 8/255 [default: the training eps, or the usual one of the dataset]",
        ),
    ] = None,
    norm: options.Norm = None,
    n: Annotated[
        int | None,
        typer.Option("-n", metavar="N", help="number of images, from the first on [default: 64]", rich_help_panel=MAIN),
    ] = None,
    arch: options.Arch = None,
    mean: options.Mean = None,
    std: options.Std = None,
    abstain: options.Abstain = None,
    settings: options.Set = None,
    attack_budget: options.AttackBudget = None,
    seed: options.Seed = 0,
    out: Annotated[Path | None, options.out("attacks/ATTACK-MODEL-DATASET-NORM-EPS")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAMES",
            help="npz: arrays; png: 8-bit images, those that stay adversarial; repeatable [default: npz]",
            rich_help_panel=OUTPUT,
            autocompletion=complete.words("npz", "png"),
        ),
    ] = None,
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    force: options.Force = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    config: options.Flags = None,
    trust_pickle: options.TrustPickle = False,
    trust_code: options.TrustCode = False,
) -> None:
    """Write adversarial examples, a table and a picture of them.

    The files go to --out, by default a folder under attacks. examples.npz holds x, x_adv, y, the predictions before
    and after, and the positions in the test split. Where no adversarial example was found, x_adv is the strongest
    attempt. --set target=N|random|least-likely|FILE aims at a class, or at one for each image.
    """
    with options.consent(context).given(), Screen(as_json=as_json).ready() as screen:
        flags = Flags(
            model=model,
            attack=attack_name,
            eps=eps,
            n=n,
            dataset=dataset,
            arch=arch,
            mean=mean,
            std=std,
            abstain=abstain,
            norm=norm,
            seed=seed,
            device=device,
            precision=precision,
            settings=parse_settings(settings or []),
            attack_budget=attack_budget,
            formats=tuple(split_names(formats or ["npz"])),
            out=out,
            resume=resume,
            force=force,
            dry_run=dry_run,
        )
        attack(flags, screen=screen, argv=context.obj or ())


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of `advbench attack`. None: a default is chosen later; for `model` it is the newest run."""

    model: str | None = None
    attack: str = "pgd"
    eps: str | None = None
    n: int | None = None
    dataset: str | None = None
    arch: str | None = None
    mean: str | None = None
    std: str | None = None
    abstain: str | None = None
    norm: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    attack_budget: int | None = None
    formats: Sequence[str] = ("npz",)
    out: Path | None = None
    resume: bool = False
    force: bool = False
    dry_run: bool = False


def attack(flags: Flags, *, screen: Screen | None = None, argv: Sequence[str] = ()) -> Examples | None:
    """Attack the first `n` (default 64) test images of the model and write FILES to `out`; None for a dry run.

    Raises UserError for wrong flags, before the attack starts, and Interrupted after a signal.
    """
    screen = screen or Screen()
    check_flags(flags)
    from advbench.cli.examples import collect, write
    from advbench.cli.keep import search_progress
    from advbench.defaults.target import load_target, newest_run, pick_device
    from advbench.evaluator import Journal, Settings, evaluate
    from advbench.evaluator.evaluate import planned

    spec = flags.model or newest_run()
    device = pick_device(flags.device)
    with Stop() as stop:
        with screen.fetching(stop.check) as fetching:
            target = load_target(
                spec, dataset=flags.dataset, arch=flags.arch, norm=flags.norm, device=device,
                mean=flags.mean, std=flags.std, abstain=flags.abstain, fetching=fetching,
            )  # fmt: skip
        size = choose_size(flags.eps, target)
        rows, indices, about = choose_rows(target.data, flags.n or min(IMAGES, len(target.data)), "first")
        data = target.data.subset(rows)
        if "png" in flags.formats and data.shape[0] not in (1, 3):
            raise UserError(f"--format png: {data.name} has {data.shape[0]} channels, a PNG has 1 or 3: choose npz")
        settings = Settings(
            attack=flags.attack, attack_settings=flags.settings, attack_budget=flags.attack_budget, eps=[size],
            norm=target.norm, seed=flags.seed, device=device, precision=flags.precision, indices=indices,
            keep_points=True, command=("advbench", *argv),
        )  # fmt: skip
        run, question = planned(target.loaded, data, settings)
        out = flags.out or free(ATTACKS / folder_name(flags.attack, spec, target, size), question, resume=flags.resume)
        kept = journal_path(out, question)
        if (out / FILES[-1]).exists() and not flags.force and not kept.exists():
            raise UserError(f"{out} holds a finished attack: replace it with --force, or name another --out")
        check_writable(out)
        first = (
            f"{flags.attack} on {spec}{'' if flags.model else ' (newest run)'}: {about} of {target.data.name} "
            f"({target.about_data}), {target.norm} eps {size}, on {device}"
        )
        if flags.dry_run:
            from advbench.cli.dry_run import show as show_plan

            show_plan(run, settings, target, n=len(data), first=first, out=out, screen=screen)
            return None
        screen.say(f"{first}, into {out}")
        screen.notes(target.data)
        with screen.bar(flags.attack) as bar:
            journal = Journal(kept, stop=stop, progress=search_progress(bar))
            try:
                result = evaluate(target.loaded, data, settings, journal=journal, resume=flags.resume)
            except Interrupted as error:
                raise Halted(str(error), {"--model": spec, "--out": str(out)}) from error
        examples = collect(target.loaded.net, data.to(device), result, images="png" in flags.formats)
        write(examples, result.record, out, flags.formats)
        journal.finish()
    show(examples, result.record.model_dump(mode="json", by_alias=True), out, screen, flags.formats)
    return examples


def check_flags(flags: Flags) -> None:
    """Raise UserError for flags that no model could make right."""
    find("attacks", flags.attack)
    if (flags.mean, flags.std, flags.abstain) != (None, None, None):
        from advbench.checkpoint import check_reading

        check_reading(flags.mean, flags.std, flags.abstain)
    for name in flags.formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    other_norms = Path(flags.model or "runs").is_dir()  # only a run may have been trained in another norm
    check_asked(eps=flags.eps, norm=flags.norm or (None if other_norms else "linf"), n=flags.n, subset="first")
    if flags.norm == CORRUPTIONS:
        raise UserError("corruptions are no perturbations in a ball: measure them with advbench evaluate")
    if flags.eps is not None and "," in flags.eps:
        raise UserError(f"--eps {flags.eps!r}: attack takes one size; advbench evaluate takes a list")
    if flags.out is not None and flags.out.exists() and not (flags.force or flags.resume):
        raise UserError(f"{flags.out} exists: replace what it holds with --force, or name another --out")


def folder_name(attack: str, spec: str, target: Target, size: Eps) -> str:
    """ATTACK-MODEL-DATASET-NORM-EPS."""
    words = (attack, Path(spec).name, target.data.name, target.norm, size.plain)
    return "-".join(re.sub(r"[^\w.+-]+", "_", word) for word in words)


def journal_path(out: Path, question: str) -> Path:
    """The hidden file beside the folder `out` from which the attack of this question can be resumed."""
    place = out if out.name else out.absolute()  # "." has no name
    return place.parent / f".{place.name}.{question}.journal"


def free(folder: Path, question: str, *, resume: bool) -> Path:
    """`folder`, or with -2, -3, ... the first that is free, or with `resume` that has this question's journal.

    A place is not free while another attack that was to be written there can be resumed.
    """

    def is_free(place: Path) -> bool:
        if journal_path(place, question).exists():
            return resume or not place.exists()
        return not place.exists() and not any(place.parent.glob(f".{glob.escape(place.name)}.*.journal"))

    number, place = 1, folder
    while not is_free(place):
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place


def show(examples: Examples, record: dict[str, Any], out: Path, screen: Screen, formats: Sequence[str]) -> None:
    """Print how many images fell and where the files are, or one JSON object."""
    summary = {"out": str(out), "n": len(examples.y), **examples.counts, "seconds": record["seconds"]}
    if screen.as_json:
        screen.json({**summary, "record": record})
        return
    counts = examples.counts
    reached = f", {counts['reached']} of them to {examples.aim}" if "reached" in counts else ""
    screen.say(
        f"{counts['felled']} of {counts['right']} correctly classified images felled{reached}, {counts['robust']} "
        f"stood ({len(examples.y) - counts['right']} of {len(examples.y)} were misclassified already), "
        f"robust accuracy {counts['robust'] / len(examples.y):.1%}, {record['seconds']:.1f} s"
    )
    for flag in record["flags"]:
        screen.say(f"{flag['severity']}: {flag['name']}: {flag['detail']}")
    if "survived" in counts and not counts["felled"]:
        screen.say("no image was felled: there is no adversarial example to write as a PNG")
    elif "survived" in counts:
        lost = counts["felled"] - counts["survived"]
        screen.say(
            f"{counts['survived']} of {counts['felled']} adversarial examples stay so in 8 bit, inside the ball"
            + (f"; of the other {lost} there is no PNG" if lost else "")
        )
    screen.say(f"{out}: {', '.join((*(FORMATS[name] for name in formats), *FILES))}")
