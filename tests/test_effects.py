"""The effect runs: every command is one that advbench takes, and the page says what the records and judges say."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from advbench.eps import parse_eps_list
from advbench.methods.base import make
from advbench.recipe import Recipe
from advbench.registry import entries, find

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "effects"


@pytest.fixture
def effects(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module `run`; nothing that it imports stays."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(HERE))
    before = set(sys.modules)
    yield importlib.import_module("run")
    for name in set(sys.modules) - before:
        if str(HERE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def options(command: list[str], name: str) -> list[str]:
    return [value for flag, value in pairwise(command) if flag == name]


def test_every_system_is_in_the_order(effects: ModuleType) -> None:
    files = {file.stem.replace("_", "-") for file in HERE.glob("*.py") if "EFFECT =" in file.read_text()}
    assert files == set(effects.ORDER)


def test_every_command_is_one_that_advbench_takes(effects: ModuleType) -> None:
    folders: dict[str, str] = {}
    for effect in map(effects.load, effects.ORDER):
        trained = {str(folder) for runs in effect.runs for folder in runs.folders}
        assert len({runs.label for runs in effect.runs}) == len(effect.runs)
        for runs in effect.runs:
            for command in runs.commands():
                one = {flag: options(command, f"--{flag}") for flag in ("method", "dataset", "arch", "eps", "out")}
                sets = [*options(command, "--set"), f"seed={options(command, '--seed')[0]}"]
                sets += [f"epochs={epochs}" for epochs in options(command, "--epochs")]
                named = {name: one[name][0] for name in ("method", "dataset", "arch", "eps")}
                recipe = Recipe.resolve(**named, sets=sets)
                make(recipe).check(recipe, 10)
                sha256 = folders.setdefault(one["out"][0], recipe.sha256)
                assert sha256 == recipe.sha256, f"two recipes share {one['out'][0]}"
        for evaluation in effect.evaluations:
            find("attacks", evaluation.attack)
            assert parse_eps_list(evaluation.eps, "linf")[0].value == 0
            assert {str(folder) for folder in evaluation.runs.folders} <= trained
        for analysis in effect.analyses:
            find("analyses", analysis.name)
            assert {str(folder) for folder in analysis.folders} <= trained
            assert len({folder.name for folder in analysis.folders}) == len(analysis.folders)


def test_the_page_is_what_the_records_and_the_judges_say(
    effects: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    code = effects.check()
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize("what", ["verdict", "table", "page"])
def test_what_was_edited_by_hand_is_found(
    effects: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    shutil.copytree(ROOT / "leaderboards", tmp_path / "leaderboards")
    monkeypatch.chdir(tmp_path)
    file = effects.place("act")
    stored = json.loads(file.read_text())
    if what == "verdict":
        stored["claims"][0]["verdict"] = "shown"
    elif what == "table":
        stored["tables"]["act-pgd/features"][0]["attacked"] = 0.9
    else:
        effects.PAGE.write_text(effects.PAGE.read_text().replace("not shown", "shown"))
    file.write_text(json.dumps(stored))
    assert effects.check() == 1


def test_a_gain_counts_from_the_margin_on_and_with_every_seed(effects: ModuleType) -> None:
    evidence = importlib.import_module("evidence")
    assert evidence.exceeds({0: 5.0, 1: 4.0}, {0: 2.0, 1: 3.0})
    assert not evidence.exceeds({0: 9.0, 1: 2.0}, {0: 2.0, 1: 3.0})
    assert not evidence.exceeds({0: 3.0, 1: 4.0}, {0: 2.0, 1: 3.0})
    assert evidence.mean_sd({0: 1.0, 1: 3.0}) == "2.0 ± 1.4" and evidence.mean_sd([1.26]) == "1.3"
    assert [evidence.verdict(*held) for held in ((True, True), (False, True), (False, False))] == [
        "shown",
        "shown only under PGD",
        "not shown",
    ]


def test_the_leaderboards_have_every_method() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("METHODS ?="))
    listed = line.removeprefix("METHODS ?=").split()
    assert len(listed) == len(set(listed))
    assert set(listed) == set(entries("methods"))


@pytest.mark.parametrize("dataset", ["fashion-mnist", "mnist"])
def test_every_method_has_its_row(dataset: str) -> None:
    table = pd.read_csv(ROOT / f"leaderboards/{dataset}-linf.csv")
    full = table[(table["attack"] == "autoattack") & (table["n"] >= 1000)]
    assert set(full["method"]) == set(entries("methods")) and full["arch"].nunique() == 1


@pytest.mark.parametrize(
    ("dataset", "arch", "eps"),
    [("mnist", "small_cnn_16_32_100", "0.3"), ("fashion-mnist", "small_cnn", "0.1"), ("cifar10", "resnet18", "8/255")],
)
def test_every_method_can_be_trained_for_the_leaderboards(dataset: str, arch: str, eps: str) -> None:
    for method in entries("methods"):
        recipe = Recipe.resolve(method=method, dataset=dataset, arch=arch, eps=eps)
        make(recipe).check(recipe, 10)
