"""`advbench analyze`, with an analysis from outside the package."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

PLUGIN = """
import pandas
from matplotlib.figure import Figure
from advbench.analyses.base import Analysis
from advbench.errors import UserError

def run(runs, *, device, progress, seed=0, scale: float = 1.0, word: str = "x"):
    if not runs:
        raise UserError("which runs? name at least one")
    progress("counting", 1, 2)
    table = pandas.DataFrame({"run": [run.name for run in runs], "value": [scale * (seed + 1)] * len(runs)})
    figure = Figure()
    figure.subplots().plot([0, 1])
    return Analysis(f"counted on {device.type}", {"counts": table}, {"line": figure}, (f"the word is {word}",))
"""


@pytest.fixture
def plugin(cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (cli.folder / "counting_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(cli.folder))
    monkeypatch.delitem(sys.modules, "counting_plugin", raising=False)
    return "counting_plugin:run"


def test_tables_figures_and_notes(cli: Any, plugin: str) -> None:
    ran = cli("analyze", plugin, "runs/a", "--device", "cpu", "--seed", "4", "--set", "scale=1/2", "--set", "word=7")
    assert ran.code == 0, ran.err
    out = cli.folder / "analyses/counting_plugin-run"
    assert ran.out.splitlines() == [
        "counted on cpu",
        "run  value",
        "a      2.5",
        "the word is 7",
        "analyses/counting_plugin-run: counts.csv, line.svg, notes.txt",
    ]
    assert (out / "counts.csv").read_text() == "run,value\na,2.5\n"
    assert (out / "line.svg").read_text().startswith("<?xml")
    assert (out / "notes.txt").read_text() == "counted on cpu\nthe word is 7\n"
    printed = json.loads(cli("analyze", plugin, "runs/a", "--device", "cpu", "--json").out)
    assert printed["tables"] == {"counts": [{"run": "a", "value": 1.0}]}
    assert printed["out"] == "analyses/counting_plugin-run-2"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name at least one"),
        (["runs"], "not a run folder"),
        (["runs/a", "--set", "scael=2"], "did you mean scale"),
        (["runs/a", "--norm", "l2"], "choose from seed"),
        (["runs/a", "--out", "runs"], "--force"),
        (["runs/a", "--device", "tpu"], "choose from auto"),
    ],
)
def test_bad_input(cli: Any, plugin: str, argv: list[str], message: str) -> None:
    ran = cli("analyze", plugin, *argv)
    warning, _, error = ran.err.partition("\n")
    assert warning == f"warning: {plugin} is code outside advbench, which runs now"
    assert replace(ran, err=error).is_one_clear_line and message in error
    assert not (cli.folder / "analyses").exists()


RUNS = ["runs/a", "runs/b"]
QUICK = ["-n", "20", "--set", "steps=1"]


@pytest.mark.parametrize(
    ("argv", "figures", "percent"),
    [
        (["transfer", *RUNS, *QUICK], ["accuracy"], "(percent)"),
        (["spectrum", *RUNS, *QUICK, "--set", "attack=pgd"], ["spectrum"], "matrix (percent)"),
        (["features", *RUNS, *QUICK], ["features"], "clean %"),
        (["quantize", *RUNS, *QUICK], ["accuracy"], "(percent)"),
        (["vulnerability", *RUNS, *QUICK], ["main", "tasks"], "main (percent)"),
        (["salience", *RUNS, "-n", "20"], ["salience"], "gradient %"),
        (["filters", *RUNS], ["filters"], ""),
        (["implicit-bias", *(f"--set={name}=100" for name in ("steps", "fista_steps", "adversarial_steps")),
          "--set=sizes=3", "--set=trials=1"], ["margins"], "margins (percent)"),
    ],
)  # fmt: skip
def test_every_analysis_draws_a_figure_and_prints_percent(
    cli: Any, run_folder: Path, argv: list[str], figures: list[str], percent: str
) -> None:
    shutil.copytree(cli.folder / "runs/a", cli.folder / "runs/b")
    ran = cli("analyze", *argv, "--device", "cpu", "--out", "out")
    assert ran.code == 0, ran.err
    assert percent in ran.out and "nan" not in ran.out
    assert sorted(path.stem for path in (cli.folder / "out").glob("*.svg")) == figures
    for path in (cli.folder / "out").glob("*.svg"):
        width, height = (float(x) for x in re.findall(r'(?:width|height)="([\d.]+)pt"', path.read_text())[:2])
        assert width > 600 and height > 80
    if percent == "(percent)":  # one table, of which a terminal shows percent and the file fractions
        clean = next(csv.DictReader((cli.folder / "out/accuracy.csv").read_text().splitlines()))
        key = "clean" if "clean" in clean else "a"
        assert 0 < float(clean[key]) <= 1 and f"{100 * float(clean[key]):.1f}" in ran.out
