"""--attack-budget on the command line: the record, its repetition, the boards and gates that tell it apart, errors."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from advbench.record import load_record

SET = ["evaluate", "--attack", "pgd,apgd-ce", "--attack-budget", "60", "--eps", "0,0.1", "-n", "20"]


def test_the_record_tells_it_and_again_repeats_it(cli: Any, run_folder: Path) -> None:
    about = json.loads(cli(*SET, "--dry-run", "--json").out)
    assert about["forwards"] + about["backwards"] <= 20 * 60
    ran = cli(*SET)
    assert ran.code == 0, ran.err
    (path,) = run_folder.rglob("records/*/*/*.json")
    record, _ = load_record(path)
    assert record.attack_budget == 60
    assert [one.settings["steps"] for one in record.attack] == [1, 26]  # of 60 passes, the shares of 22 and 202
    assert "the same: record" in cli("evaluate", "--again", path).out
    assert cli("evaluate", "--again", path, "--attack-budget", "70").is_one_clear_line


def test_of_an_attack(cli: Any, run_folder: Path) -> None:
    ran = cli("attack", "--attack", "pgd", "--attack-budget", "8", "-n", "8", "--out", "o")
    assert ran.code == 0, ran.err
    (settings,) = [one["settings"] for one in json.loads(Path("o/attack.json").read_text())["attack"]]
    assert settings["steps"] == 3 and settings["attack_budget"] == 8
    assert cli("attack", "--attack", "fgsm", "--attack-budget", "8", "-n", "8").is_one_clear_line


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--attack-budget", "3", "--attack", "pgd"], "choose at least 4"),
        (["--attack-budget", "0"], "it must be a whole number from 1"),
        (["--attack-budget", "100", "--attack", "pgd", "--set", "steps=9"], "leave out --set steps"),
        (["--attack-budget", "100", "--engine", "reference"], "as published: leave out --attack-budget"),
        (["--attack-budget", "100", "--precision", "bf16", "--attack", "apgd-t"], "choose fp32"),
    ],
)
def test_what_is_refused_is_one_clear_line(cli: Any, run_folder: Path, more: list[str], text: str) -> None:
    before = cli.files()
    ran = cli("evaluate", "--eps", "0,0.1", "-n", "10", *more)
    assert ran.is_one_clear_line and text in ran.err and cli.files() == before, ran.err


def test_a_function_of_ones_own_has_none(cli: Any, run_folder: Path) -> None:
    (cli.folder / "mine.py").write_text("def idle(model, x, y, eps):\n    return x\n")
    ran = cli("evaluate", "--attack", "mine:idle", "--attack-budget", "100", "--eps", "0.1", "-n", "10")
    told, error = ran.err.splitlines()
    assert ran.code == 2 and "is code outside advbench" in told and "mine:idle runs the model itself" in error


def test_boards_and_gates_tell_budgets_apart(cli: Any, run_folder: Path) -> None:
    pgd = ["evaluate", "--attack", "pgd", "--eps", "0,0.1", "-n", "20", "--leaderboard", "LB"]
    for more in ([], ["--attack-budget", "40"]):
        assert cli(*pgd, *more).code == 0
    records = [load_record(path)[0] for path in Path("LB").rglob("records/*/*/*.json")]
    base, other = sorted(records, key=lambda record: record.attack_budget or 0, reverse=True)
    table = Path("LB/digits-linf.md").read_text()
    assert table.count("| runs/a") + table.count("| a ") >= 2 and "attack_budget 40" in table
    files = {record.id: next(Path("LB").rglob(f"{record.id}.json")) for record in records}
    ran = cli("compare", files[other.id], "--baseline", files[base.id], "--fail-if", "clean < baseline")
    assert ran.code == 2 and "attack_budget none; 40 of pgd" in ran.err
    command = shlex.split(ran.err.partition("Measure alike by ")[2].partition(", or compare them with --")[0])
    assert "--attack-budget" in command and "--set" not in command
    assert cli(*command[1:]).code == 0
