"""`advbench compare`: paired differences between models, a gate for CI, and the provenance of a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli import complete, options
from advbench.cli.console import Screen
from advbench.cli.help import GATE, MAIN, OUTPUT
from advbench.cli.settings import split_names
from advbench.errors import UserError, unknown

if TYPE_CHECKING:
    from advbench.compare import Comparison, Link
    from advbench.record import Record

FORMATS = ("table", "csv", "markdown", "junit", "json")


def command(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B...", help="run folders, records, or models measured before", autocompletion=complete.measured
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="X",
            help="the model to compare the others with [default: A]",
            rich_help_panel=MAIN,
            autocompletion=complete.measured,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        options.dataset("use only records of this dataset [default: that of all of them]"),
    ] = None,
    norm: Annotated[
        str | None,
        options.norm("use only records in this norm [default: that of all of them]"),
    ] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="allow models measured on different images", rich_help_panel=MAIN)
    ] = False,
    different_attacks: Annotated[
        bool,
        typer.Option(
            "--different-attacks",
            help="allow models measured by different attacks, engines or norms",
            rich_help_panel=MAIN,
        ),
    ] = False,
    fail_if: Annotated[
        str | None,
        typer.Option(
            "--fail-if",
            metavar="EXPR",
            help="exit 1 if this holds: 'acc@8/255 < baseline - 0.5 or clean < 80'",
            rich_help_panel=GATE,
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option("--alpha", metavar="P", help="significance level of --fail-if", rich_help_panel=GATE),
    ] = 0.05,
    strict: Annotated[
        bool, typer.Option("--strict", help="--fail-if without the test of significance", rich_help_panel=GATE)
    ] = False,
    allow_flags: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-flags",
            metavar="NAMES",
            help="flags that --fail-if accepts: random,square-wins; repeatable [default: none]",
            rich_help_panel=GATE,
            autocompletion=complete.flags,
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help=", ".join(FORMATS),
            rich_help_panel=OUTPUT,
            autocompletion=complete.words(*FORMATS),
        ),
    ] = "table",
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="plot curves and differences: .svg, .png or .pdf",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="RECORD",
            help="only show and check what this record was made from",
            rich_help_panel=OUTPUT,
            autocompletion=complete.records,
        ),
    ] = None,
    as_json: options.Json = False,
    config: options.Flags = None,
    trust_pickle: options.TrustPickle = False,
    trust_code: options.TrustCode = False,
) -> None:
    """Compare models measured on the same images.

    The exit code is 1 if --fail-if finds a regression: a value below its floor ('clean < 80'), or a drop beyond its
    tolerance that is also significant ('clean < baseline - 1': one-sided, against no drop). It is 2 if the models were
    measured differently, a flag doubts the numbers, or the images are too few. A gate of floors needs no baseline.
    """
    with options.consent(context).given(), Screen(as_json=as_json).ready() as screen:
        if explain is not None:
            check_alone(context)
            trace(explain, screen=screen)
            return
        if fail_if is None:
            check_no_gate(context)
        flags = Flags(
            models=tuple(models or ()),
            baseline=baseline,
            fail_if=fail_if,
            alpha=alpha,
            strict=strict,
            unpaired=unpaired,
            different_attacks=different_attacks,
            allow_flags=tuple(split_names(allow_flags or [])),
            plot=plot,
            form="json" if as_json else form,
            dataset=dataset,
            norm=norm,
        )
        found = compare(flags, screen=screen)
    if found.gate is not None and found.gate.failed:
        raise typer.Exit(1)


def check_no_gate(context: typer.Context) -> None:
    """Raise UserError for flags of a gate where there is none, which would seem to have passed."""
    if given := [name for name in ("alpha", "strict", "allow_flags") if options.was_given(context, name)]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"{flags} without --fail-if would change nothing: add a gate, such as --fail-if 'clean < baseline - 1', or "
            "leave it out"
        )


def check_alone(context: typer.Context) -> None:
    """Raise UserError for models and flags beside --explain, which is about one record and compares nothing."""
    fitting = {"explain", "trust_pickle", "trust_code", "as_json"}
    given = [
        parameter.opts[0] if parameter.opts[0].startswith("-") else " ".join(context.params[parameter.name])
        for parameter in context.command.params
        if parameter.name and parameter.name not in fitting and options.was_given(context, parameter.name)
    ]
    if given:
        raise UserError(
            f"--explain shows what one record was made from, for which {', '.join(given)} says nothing: use only "
            "--trust-pickle, --trust-code and --json with it"
        )


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of `advbench compare`. No `baseline`: the first of `models`. No `fail_if`: no gate."""

    models: Sequence[str] = ()
    baseline: str | None = None
    fail_if: str | None = None
    alpha: float = 0.05
    strict: bool = False
    unpaired: bool = False
    different_attacks: bool = False
    allow_flags: Sequence[str] = ()
    plot: Path | None = None
    form: str = "table"
    dataset: str | None = None
    norm: str | None = None


def compare(flags: Flags, *, screen: Screen | None = None) -> Comparison:
    """Compare the models with the baseline, and print the result in the form that the flags ask for.

    Raises UserError for models that have no record, and for those that cannot be compared, of which markdown, junit and
    json say so, too.
    """
    screen = screen or Screen()
    if flags.form not in FORMATS:
        raise unknown("format", flags.form, FORMATS)
    import advbench.compare as comparing

    writers = {
        "csv": comparing.to_csv,
        "markdown": comparing.to_markdown,
        "junit": comparing.to_junit,
        "json": comparing.to_json,
    }
    try:
        found = comparing.compare(
            [comparing.read_some(text, flags.dataset, flags.norm) for text in flags.models],
            None if flags.baseline is None else comparing.read_some(flags.baseline, flags.dataset, flags.norm),
            fail_if=flags.fail_if,
            alpha=flags.alpha,
            strict=flags.strict,
            unpaired=flags.unpaired,
            different_attacks=flags.different_attacks,
            allow_flags=flags.allow_flags,
        )
    except comparing.Refused as error:
        if flags.form in ("markdown", "junit", "json"):
            screen.text(writers[flags.form](error.comparison))
        raise
    if flags.plot is not None:
        comparing.plot(found, flags.plot)
    if flags.form in writers:
        screen.text(writers[flags.form](found))
    else:
        show(found, screen)
    if flags.plot is not None:
        screen.note(f"figure {flags.plot}")
    return found


def show(found: Comparison, screen: Screen) -> None:
    """Print a table for each model, or one for all where they are many; the gate's findings and the notes."""
    from advbench.compare import HEADER, cells, many, reason, rule, verdict

    if found.caveat:
        screen.say(found.caveat)
    counts = "/".join(dict.fromkeys(str(side.units[0].record.n) for side in found.sides))
    against = f"; percent, baseline {found.baseline}" if found.baseline else ""
    screen.say(f"{found.dataset}, {found.norm}, {counts} images{against}")
    if found.rows and many(found):
        show_matrix(found, screen)
    for model in found.models if found.rows and not many(found) else ():
        rows = [cells(row)[1:] for row in found.rows if row.model == model]
        screen.table(HEADER[1:], rows, title=model)
    if found.gate is not None:
        screen.say(f"gate: {found.gate.expression}; {rule(found.gate)}")
        for finding in found.gate.findings:
            what = "failed" if finding.failed else "passed"
            screen.say(f"{what}: {finding.model}: {reason(finding, found.gate.strict)}")
        screen.say(verdict(found))
    for note in found.notes:
        screen.say(f"note: {note}")


def show_matrix(found: Comparison, screen: Screen) -> None:
    """Print one table of all models."""
    from advbench.compare import STAR, matrix

    header, rows = matrix(found)
    screen.say(f"the baseline, and differences to it in points; {STAR}; intervals: --plot FILE or --format csv")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [[line[0], *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
             for line in (header, *rows)]  # fmt: skip
    screen.table(lines[0], lines[1:])


def trace(text: str, *, screen: Screen | None = None) -> list[Link]:
    """Check each link from the record that `text` names back to its sources, and print them.

    Raises UserError for a record that is not there, and at the end where a link differs or is missing. Other versions
    of packages than those recorded are shown and are no fault.
    """
    screen = screen or Screen()
    import advbench.compare as comparing
    from advbench import consent

    path = comparing.find_record(text)

    def weights(record: Record) -> str:
        from advbench.checkpoint import load_model
        from advbench.cli.again import arch_of

        spec = comparing.whereabouts(path, record)
        return load_model(spec, arch=arch_of(spec, record)).weights_sha256

    def images(record: Record) -> str:
        from advbench.cli.again import images
        from advbench.data import load

        return images(load(record.dataset.name, record.dataset.split), record).images_sha256

    with replace(consent.reading(path), by_name=False).given():
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
