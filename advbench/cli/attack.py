"""`advbench attack`: adversarial examples to keep and to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.cli import options
from advbench.cli.choice import check_asked, choose_rows, reference_eps
from advbench.cli.console import Screen
from advbench.cli.settings import parse_settings
from advbench.cli.stop import Halted, Stop
from advbench.eps import parse_eps
from advbench.errors import Interrupted, UserError
from advbench.registry import find

if TYPE_CHECKING:
    from advbench.cli.examples import Examples

FILES = ("examples.npz", "examples.csv", "examples.png", "attack.json")
ATTACKS = Path("attacks")
IMAGES = 64


def command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="SPEC", help="run folder, file, robustbench:NAME, ... [default: newest run]"),
    ] = None,
    attack_name: Annotated[str, typer.Option("--attack", metavar="NAME", help="advbench list attacks")] = "pgd",
    eps: Annotated[
        str | None, typer.Option("--eps", metavar="SIZE", help="[default: the model's training eps]")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", metavar="N", help="images, from the first on [default: 64]")] = None,
    dataset: options.Dataset = None,
    arch: options.Arch = None,
    norm: options.Norm = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    settings: options.Set = None,
    config: options.Flags = None,
    out: options.Out = None,
    resume: options.Resume = False,
    force: options.Force = False,
    trust_pickle: options.TrustPickle = False,
    as_json: options.Json = False,
) -> None:
    """Write adversarial examples, and a picture.

    examples.npz holds x, x_adv, y, the predictions before and after, and the positions in the test split.
    """
    with Screen(as_json=as_json).ready() as screen:
        attack(
            model,
            attack=attack_name,
            eps=eps,
            n=n,
            dataset=dataset,
            arch=arch,
            norm=norm,
            seed=seed,
            device=device,
            precision=precision,
            settings=parse_settings(settings or []),
            out=out,
            resume=resume,
            force=force,
            trust_pickle=trust_pickle,
            screen=screen,
            argv=context.obj or (),
        )


def attack(
    model: str | None = None,
    *,
    attack: str = "pgd",
    eps: str | None = None,
    n: int | None = None,
    dataset: str | None = None,
    arch: str | None = None,
    norm: str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    settings: dict[str, Any] | None = None,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    trust_pickle: bool = False,
    screen: Screen | None = None,
    argv: Sequence[str] = (),
) -> Examples:
    """Attack the first `n` (64) test images of `model` (None: the newest run) and write what came of it into `out`.

    Raises UserError, before anything is run, for whatever does not fit; Interrupted when a signal came.
    """
    screen = screen or Screen()
    find("attacks", attack)
    other_norms = Path(model or "runs").is_dir()  # a run may be trained in one
    check_asked(eps=eps, norm=norm or (None if other_norms else "linf"), n=n, subset="first")
    if eps is not None and "," in eps:
        raise UserError(f"--eps {eps!r}: attack takes one size; advbench evaluate takes a list")
    if out is not None and out.exists() and not (force or resume):
        raise UserError(f"{out} exists: replace what it holds with --force, or name another --out")

    from advbench.cli.examples import collect, write
    from advbench.cli.keep import check_writable, shown
    from advbench.cli.subject import load_subject, newest_run, pick_device
    from advbench.evaluator import Journal, evaluate

    spec = model or newest_run()
    place = pick_device(device)
    with Stop() as stop:
        with screen.fetching(stop.check) as fetching:
            subject = load_subject(
                spec, dataset=dataset, arch=arch, norm=norm, device=place, trust_pickle=trust_pickle, fetching=fetching
            )
        images, ball = subject.data.name, subject.norm
        size = parse_eps(eps, ball) if eps else subject.train_eps or reference_eps(images, ball)
        if size is None:
            raise UserError(f"there is no usual {ball} eps for {images}: write a size such as --eps 8/255")
        rows, indices, about = choose_rows(subject.data, n or min(IMAGES, len(subject.data)), "first")
        if out is None:
            words = (attack, Path(spec).name, images, ball, size.text)
            out = free(ATTACKS / "-".join(re.sub(r"[^\w.+-]+", "_", word) for word in words), resume=resume)
        check_writable(out)
        why = "" if model else " (newest run)"
        screen.say(
            f"{attack} on {spec}{why}: {about} of {images} ({subject.about_data}), {ball} eps {size}, on {place}, "
            f"into {out}"
        )
        data = subject.data.subset(rows)
        with screen.bar(attack) as bar:
            journal = Journal(out.parent / f".{out.name}.journal", stop=stop, progress=shown(bar))
            try:
                result = evaluate(
                    subject.loaded, data, attack=attack, eps=[size], norm=ball, settings=settings or {},
                    seed=seed, device=place, precision=precision, indices=indices, journal=journal, resume=resume,
                    keep_points=True, command=("advbench", *argv),
                )  # fmt: skip
            except Interrupted as error:
                raise Halted(str(error).partition(":")[0], {"--model": spec, "--out": str(out)}) from error
        examples = collect(subject.loaded.net, data.to(place), result)
        write(examples, result.record, out)
        journal.finish()
    show(examples, result.record.model_dump(mode="json", by_alias=True), out, screen)
    return examples


def free(folder: Path, *, resume: bool) -> Path:
    """`folder`, or with -2, -3, ... the first that is not there; `resume`: one whose attack was interrupted."""
    number, place = 1, folder
    while place.exists() and not (resume and (place.parent / f".{place.name}.journal").exists()):
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place


def show(examples: Examples, record: dict[str, Any], out: Path, screen: Screen) -> None:
    """How many fell, and where the files are."""
    told = {"out": str(out), "n": len(examples.y), **examples.counts, "seconds": record["seconds"]}
    if screen.as_json:
        screen.json({**told, "record": record})
        return
    counts = examples.counts
    target = examples.target
    reached = "" if target is None else f", {counts['reached']} of them to {examples.name(target)}"
    screen.say(
        f"{counts['felled']} of {counts['right']} rightly classified images felled{reached} "
        f"({len(examples.y) - counts['right']} of {len(examples.y)} were wrong already), "
        f"robust accuracy {counts['robust'] / len(examples.y):.1%}, {record['seconds']:.1f} s"
    )
    for flag in record["flags"]:
        screen.say(f"{flag['severity']}: {flag['name']}: {flag['detail']}")
    screen.say(f"{out}: {', '.join(FILES)}")
