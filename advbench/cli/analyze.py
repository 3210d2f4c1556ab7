"""`advbench analyze`: properties of trained models beyond their accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.cli import complete, options
from advbench.cli.console import Screen
from advbench.cli.help import MAIN, MEASURE, RUNNING
from advbench.cli.settings import parse_settings, written_settings
from advbench.cli.stop import Stop
from advbench.defaults.analysis import find_analysis, run_analysis
from advbench.errors import UserError
from advbench.files import check_writable
from advbench.outlook import Steady

if TYPE_CHECKING:
    from pandas import DataFrame

    from advbench.analyses.base import Analysis

ANALYSES = Path("analyses")


def command(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="filters, transfer, ... (advbench list analyses)", autocompletion=complete.analyses
        ),
    ] = None,
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="run folders", autocompletion=complete.models)
    ] = None,
    dataset: options.Dataset = None,
    eps: Annotated[
        str | None,
        options.eps("LIST", "sizes of the perturbation [default: the training eps]"),
    ] = None,
    norm: options.Norm = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", metavar="N", min=1, help="number of images [default: that of the analysis]", rich_help_panel=MAIN
        ),
    ] = None,
    settings: options.Set = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            max=options.LARGEST_SEED,
            help="seed of all random numbers [default: 0]",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    out: Annotated[Path | None, options.out("analyses/NAME")] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="auto, fp32 or bf16 [default: that of the analysis]",
            rich_help_panel=RUNNING,
            autocompletion=complete.words("auto", "fp32", "bf16"),
        ),
    ] = None,
    config: options.Flags = None,
    trust_pickle: options.TrustPickle = False,
    trust_code: options.TrustCode = False,
) -> None:
    """Analyse what makes trained models robust.

    Writes tables, figures and notes to --out, by default a folder under analyses.
    """
    flags = {"dataset": dataset, "norm": norm, "eps": eps, "n": n, "seed": seed, "precision": precision}
    with options.consent(context).given(), Screen(as_json=as_json).ready() as screen:
        analyze(
            name,
            runs or [],
            flags={key: value for key, value in flags.items() if value is not None},
            settings=settings or [],
            device=device,
            out=out,
            force=force,
            screen=screen,
        )


def analyze(
    name: str | None,
    runs: Sequence[str],
    *,
    flags: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    device: str = "auto",
    out: Path | None = None,
    force: bool = False,
    screen: Screen | None = None,
) -> Analysis:
    """Run the analysis `name` on run folders, show its tables, and write them and its figures to `out`.

    Raises UserError for an unknown name or setting, a folder that is not a run, and what the analysis refuses.
    """
    screen = screen or Screen()
    find_analysis(name)
    if out is not None and out.exists() and not force:
        raise UserError(f"{out} exists: replace what it holds with --force, or name another --out")
    out = out or _free(ANALYSES / str(name).replace(":", "-"))

    from advbench.defaults.target import pick_device

    given = parse_settings(settings)
    check_writable(out)
    place = pick_device(device)
    with Stop() as stop, screen.bar(str(name)) as bar:
        pace = Steady()

        def progress(stage: str, done: float, total: float | None) -> None:
            stop.check()
            bar.update(stage, lambda: pace.outlook(stage, done / total if total else None))

        found = run_analysis(
            name, runs, device=place, flags=flags or {}, settings=given, written=written_settings(settings),
            progress=progress,
        )  # fmt: skip
    write(found, out)
    show(found, out, screen)
    return found


def write(found: Analysis, out: Path) -> None:
    """Write tables as CSV, figures as SVG and notes as text, each file atomically. Raises UserError."""
    from advbench.figure import render
    from advbench.files import write_atomic

    for name, table in found.tables.items():
        write_atomic(out / f"{name}.csv", _flat(table).to_csv(index=False, lineterminator="\n"))
    for name, figure in found.figures.items():
        write_atomic(out / f"{name}.svg", render(figure))
    write_atomic(out / "notes.txt", "".join(f"{line}\n" for line in (found.title, *found.notes)))


def show(found: Analysis, out: Path, screen: Screen) -> None:
    """Print title, tables and notes, or one JSON object. Tables for people have shares in percent."""
    if screen.as_json:
        tables = {name: json.loads(_flat(table).to_json(orient="records")) for name, table in found.tables.items()}
        screen.json({"title": found.title, "tables": tables, "notes": list(found.notes), "out": str(out)})
        return
    screen.say(found.title)
    for name, table in found.tables.items():
        frame = _flat(table)
        columns = [str(column) for column in frame.columns]
        whole = name in found.shares
        shares = [whole or column in found.shares for column in columns]
        rows = [
            [_cell(value, share) for value, share in zip(row, shares, strict=True)]
            for row in frame.itertuples(index=False)
        ]
        if not whole:
            columns = [f"{column} %" if share else column for column, share in zip(columns, shares, strict=True)]
        title = name if len(found.tables) > 1 else ""
        screen.table(columns, rows, title=f"{title} (percent)".strip() if whole else title)
    for note in found.notes:
        screen.say(note)
    files = [*(f"{name}.csv" for name in found.tables), *(f"{name}.svg" for name in found.figures), "notes.txt"]
    screen.say(f"{out}: {', '.join(files)}")


def _flat(table: DataFrame) -> DataFrame:
    """The table with a named index as its first columns; an index without a name only counts rows."""
    return table.reset_index() if any(name is not None for name in table.index.names) else table


def _cell(value: Any, share: bool) -> str:
    """A number with four digits, or a share in percent; NaN is empty."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    return f"{100 * value:.1f}" if share else f"{value:.4g}"


def _free(folder: Path) -> Path:
    """`folder`, or with -2, -3, ... the first that does not exist."""
    number, place = 1, folder
    while place.exists():
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place
