"""`advbench compare`: paired differences between models, a gate for CI, and the provenance of a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli import options
from advbench.cli.console import Screen
from advbench.errors import UserError, unknown

if TYPE_CHECKING:
    from advbench.compare import Comparison, Link, Side
    from advbench.record import Record

FORMATS = ("table", "csv", "markdown", "junit", "json")


def command(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="A B...", help="run folders, records, or models measured before")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="X", help="the model to compare the others with [default: A]")
    ] = None,
    fail_if: Annotated[
        str | None,
        typer.Option(
            "--fail-if", metavar="EXPR", help="exit 1 if this holds: 'acc@8/255 < baseline - 0.5 or clean < 80'"
        ),
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", metavar="P", help="significance level of --fail-if")] = 0.05,
    strict: Annotated[bool, typer.Option("--strict", help="--fail-if without the test of significance")] = False,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="allow models measured on different images")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="plot curves and differences: .svg, .png or .pdf")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help=", ".join(FORMATS))] = "table",
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="RECORD", help="show and check what this record was made from"),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="use only records of this dataset")
    ] = None,
    norm: Annotated[str | None, typer.Option("--norm", metavar="NAME", help="use only records in this norm")] = None,
    trust_pickle: options.TrustPickle = False,
    config: options.Flags = None,
    as_json: options.Json = False,
) -> None:
    """Compare models measured on the same images.

    The exit code is 1 if --fail-if finds a regression: a drop beyond the tolerance that is also significant.
    """
    with Screen(as_json=as_json).ready() as screen:
        if explain is not None:
            trace(explain, trust_pickle=trust_pickle, screen=screen)
            return
        found = compare(
            models or [],
            baseline=baseline,
            fail_if=fail_if,
            alpha=alpha,
            strict=strict,
            unpaired=unpaired,
            plot=plot,
            form="json" if as_json else form,
            dataset=dataset,
            norm=norm,
            screen=screen,
        )
    if found.gate is not None and found.gate.failed:
        raise typer.Exit(1)


def compare(
    models: Sequence[str],
    *,
    baseline: str | None = None,
    fail_if: str | None = None,
    alpha: float = 0.05,
    strict: bool = False,
    unpaired: bool = False,
    plot: Path | None = None,
    form: str = "table",
    dataset: str | None = None,
    norm: str | None = None,
    screen: Screen | None = None,
) -> Comparison:
    """Compare each of `models` with `baseline` (None: the first of them), and print the result in `form`.

    Raises UserError for models that have no record or cannot be compared.
    """
    screen = screen or Screen()
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    from advbench import compare as comparing

    def read(text: str) -> Side:
        side = comparing.read_side(text)
        units = tuple(
            unit
            for unit in side.units
            if dataset in (None, unit.record.dataset.name) and norm in (None, unit.record.norm)
        )
        if not units:
            asked = " and ".join(word for word in (dataset, norm) if word)
            choices = sorted({f"{unit.record.dataset.name} in {unit.record.norm}" for unit in side.units})
            raise UserError(f"there is no record of {text} on {asked}: choose from {', '.join(choices)}")
        return replace(side, units=units)

    found = comparing.compare(
        [read(text) for text in models],
        None if baseline is None else read(baseline),
        fail_if=fail_if,
        alpha=alpha,
        strict=strict,
        unpaired=unpaired,
    )
    if plot is not None:
        comparing.plot(found, plot)
    writers = {
        "csv": comparing.to_csv,
        "markdown": comparing.to_markdown,
        "junit": comparing.to_junit,
        "json": comparing.to_json,
    }
    if form in writers:
        screen.text(writers[form](found))
    else:
        show(found, screen)
    if plot is not None:
        screen.note(f"figure {plot}")
    return found


def show(found: Comparison, screen: Screen) -> None:
    """Print a table for each model, the gate's findings and the notes."""
    from advbench.compare import HEADER, cells, reason, verdict

    counts = "/".join(dict.fromkeys(str(side.units[0].record.n) for side in found.sides))
    screen.say(f"{found.dataset}, {found.norm}, {counts} images; percent, baseline {found.baseline}")
    for model in found.models:
        rows = [cells(row)[1:] for row in found.rows if row.model == model]
        screen.table(HEADER[1:], rows, title=model)
    if found.gate is not None:
        for finding in found.gate.findings:
            what = "failed" if finding.failed else "passed"
            screen.say(f"{what}: {finding.model}: {reason(finding, found.gate.strict)}")
        screen.say(verdict(found))
    for note in found.notes:
        screen.say(f"note: {note}")


def trace(text: str, *, trust_pickle: bool = False, screen: Screen | None = None) -> list[Link]:
    """Check each link from the record that `text` names back to its sources, and print them.

    Raises UserError for a record that is not there, and at the end where a link differs or is missing. Other versions
    of packages than those recorded are shown and are no fault.
    """
    screen = screen or Screen()
    from advbench import compare as comparing

    path = comparing.find_record(text)

    def weights(record: Record) -> str:
        from advbench.checkpoint import load_model
        from advbench.cli.again import arch_of

        spec = comparing.whereabouts(path, record)
        return load_model(spec, arch=arch_of(spec, record), trust_pickle=trust_pickle).weights_sha256

    def images(record: Record) -> str:
        from advbench.cli.again import images
        from advbench.data import load

        return images(load(record.dataset.name, record.dataset.split), record).images_sha256

    chain = comparing.explain(path, weights=weights, images=images)
    for link in chain if screen.as_json else ():
        screen.json(asdict(link))
    rows = [(link.state, link.name, link.says, link.detail) for link in chain]
    screen.table(("state", "link", "says", "detail"), rows)
    broken = [link for link in chain if link.state in ("differs", "missing") and link.name != "version"]
    if broken:
        raise UserError(f"{path}: not verified: {'; '.join(f'{link.name} ({link.detail})' for link in broken)}")
    if not screen.as_json:
        screen.say("every link that can be checked is verified")
    return chain
