"""`advbench leaderboard`, and what `advbench evaluate --leaderboard` puts on a page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_records import made, order, sections

from advbench import leaderboard
from advbench.record import load_record

PAGE = "LB/digits-linf.md"
TRAIN = ("train", "--method", "standard", "--dataset", "digits", "--arch", "mlp", "--eps", "0.1", "--epochs", "1")
WRITER = """
import sys
from advbench.cli import run
for number in range(4):
    assert run(["leaderboard", "LB", "rename", sys.argv[1], f"{sys.argv[2]}-{number}"]) == 0
"""


@pytest.fixture
def board(cli: Any) -> Any:
    """The command line in a folder with a leaderboard of two records, the first of which is better."""
    for spec, accuracy in (("runs/good", 50), ("runs/bad", 40)):
        record, fates = made([90, 60, accuracy], spec=spec)
        record.save("LB", fates)
    return cli


def ids(board: Any) -> list[str]:
    """The ids of the good and the bad record."""
    found = [load_record(path)[0] for path in (board.folder / "LB/records").rglob("*.json")]
    return [record.id for record in sorted(found, key=lambda record: -record.auc)]


def page(cli: Any, name: str = "LB/cifar10-linf.md") -> str:
    return (cli.folder / name).read_text()


def test_attacks_of_different_strength_are_not_ranked_together(cli: Any, run_folder: Path) -> None:
    """The weaker attack's number is higher, and says less."""
    for seed, out in (("0", "std"), ("1", "other")):
        argv = ("--method", "standard", "--arch", "mlp", "--eps", "0.1", "--epochs", "4", "--seed", seed, "--out", out)
        assert cli("train", "--dataset", "digits", "--device", "cpu", *argv).code == 0
    # At this eps the weaker attacks are not so weak that a flag says so.
    for model, attack in (("std", "fgsm"), ("std", "pgd"), ("other", "pgd")):
        argv = ("--model", model, "--attack", attack, "--eps", "0,0.02", "--leaderboard", "LB")
        assert cli("evaluate", *argv).code == 0
    short = ("--set", "n_queries=20", "--eps", "0,0.02", "--leaderboard", "LB")
    assert cli("evaluate", "--model", "std", "--name", "My standard net", "--attack", "autoattack", *short).code == 0
    Path("few.json").write_text("[7, 0, 1, 2, 3, 4, 5, 9]")
    assert cli("evaluate", "--model", "std", "--attack", "pgd", "--subset", "few.json", *short[2:]).code == 0
    assert cli("evaluate", "--model", "std", "--attack", "pgd", "-n", "100", *short[2:]).code == 0

    text = page(cli, PAGE)
    headings = [heading for heading, _ in order(text)]
    assert headings == [f"{attack} on all 500 test images" for attack in ("autoattack", "pgd", "fgsm")]
    assert [len(models) for _, models in order(text)] == [1, 2, 1]
    assert order(text)[0][1] == ["My standard net"]
    reasons = [row["not ranked because"] for part in sections(text) if part.below for row in part.rows]
    assert sorted(reasons) == ["fewer than 500 images", "hand-picked images"]
    rows = [row for part in sections(text) for row in part.rows if "train seed" in row]
    seeds = {row["train seed"] for row in rows}
    passes = {row["train passes"] for row in rows if row["model"] == "std"}
    assert seeds == {"0", "1"} and passes == {"2"}  # one forward and one backward pass of each image
    assert leaderboard.check(Path("LB")) == []


def test_a_new_name_for_an_old_record_is_no_new_record(cli: Any, run_folder: Path) -> None:
    argv = ("evaluate", "--attack", "fgsm", "--eps", "0,0.1", "-n", "20", "--leaderboard", "LB")
    assert cli(*argv).code == 0
    ran = cli(*argv, "--name", "Other")
    assert ran.code == 0 and "was there before, under the name runs/a" in ran.err and "rename" in ran.err
    several = cli(*argv, "--model", "runs/a", "--model", "runs/b", "--name", "x")
    assert several.is_one_clear_line and "--name is the name of one model" in several.err
    assert cli(*argv, "--name", " ").is_one_clear_line


def test_build_is_the_default(board: Any) -> None:
    ran = board("leaderboard", "LB")
    header, row = ran.out.splitlines()
    assert ran.code == 0 and "warning" not in ran.err
    assert header.split("  ")[0] == "page" and row.split() == ["LB/cifar10-linf.md", "1", "2", "0", "0"]
    assert max(map(len, ran.out.splitlines())) <= 80
    assert leaderboard.check(Path("LB")) == []
    (line,) = board("leaderboard", "LB", "build", "--json").out.splitlines()
    assert json.loads(line) == {
        "page": "LB/cifar10-linf.md", "dataset": "cifar10", "norm": "linf",
        "rankings": 1, "ranked": 2, "below": 0, "hidden": 0,
    }  # fmt: skip


def test_retire_and_rename(board: Any) -> None:
    good, bad = ids(board)
    assert board("leaderboard", "LB", "rename", bad, "An honest net").code == 0
    assert [models for _, models in order(page(board))] == [["runs/good", "An honest net"]]
    ran = board("leaderboard", "LB", "retire", good[:8], "--why", "trained on the test images")
    assert ran.code == 0 and ran.out.splitlines()[1].split() == ["LB/cifar10-linf.md", "1", "1", "0", "1"]
    assert [models for _, models in order(page(board))] == [["An honest net"]]
    assert "runs/good: trained on the test images" in page(board).split("## Not shown")[1]
    ran = board("compare", f"LB/{good[:8]}", f"LB/{bad[:8]}")
    assert ran.is_one_clear_line and f"record {good} is retired: trained on the test images" in ran.err


def test_damage_is_an_error_after_the_tables_are_written(board: Any) -> None:
    good, bad = ids(board)
    assert board("leaderboard", "LB", "retire", good, "--why", "x").code == 0
    (notice,) = (board.folder / "LB/records").rglob("*.notice.json")
    notice.write_text(notice.read_text().replace('"x"', '"y"'))
    ran = board("leaderboard", "LB")
    assert ran.code == 2 and "1 file was left out of the tables: damaged" in ran.err.splitlines()[-1]
    assert f"{good}.notice.json is damaged" in ran.err
    assert [models for _, models in order(page(board))] == [["runs/good", "runs/bad"]]
    refused = board("leaderboard", "LB", "rename", good, "z")
    assert refused.is_one_clear_line and "notice.json is damaged" in refused.err
    (board.folder / f"LB/records/cifar10/linf/{bad}.npz").write_bytes(b"")
    ran = board("leaderboard", "LB", "rename", bad, "z")
    assert ran.is_one_clear_line and "damaged" in ran.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which leaderboard? choose from LB"),
        (["none"], "no leaderboard, since it holds no records: choose from LB"),
        (["LB", "biuld"], "did you mean build"),
        (["LB", "build", "more"], "write advbench leaderboard DIR build"),
        (["LB", "build", "--why", "x"], "write advbench leaderboard DIR build"),
        (["LB", "retire"], "DIR retire ID --why TEXT"),
        (["LB", "retire", "ID"], "DIR retire ID --why TEXT"),
        (["LB", "retire", "ID", "--why", " "], "must not be empty"),
        (["LB", "retire", "zz", "--why", "x"], "has no record 'zz': choose from "),
        (["LB", "rename", "ID"], "DIR rename ID NAME"),
        (["LB", "rename", "ID", "a", "b"], "DIR rename ID NAME"),
        (["LB", "rename", "ID", ""], "must not be empty"),
        (["LB", "rename", "ID", "a", "--why", "x"], "DIR rename ID NAME"),
    ],
    ids=" ".join,
)
def test_wrong_input_is_one_line_and_writes_nothing(board: Any, argv: list[str], message: str) -> None:
    before = board.files()
    ran = board("leaderboard", *(ids(board)[0] if word == "ID" else word for word in argv))
    assert ran.is_one_clear_line and message in ran.err
    assert board.files() == before


def test_where_there_is_no_leaderboard(cli: Any) -> None:
    ran = cli("leaderboard", "LB")
    assert ran.is_one_clear_line and "advbench evaluate --leaderboard DIR makes one" in ran.err
    assert cli.files() == set()


def test_two_writers_of_notices_damage_nothing(board: Any) -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "MPLCONFIGDIR": str(board.folder / "mpl")}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, key, name], env=environment, stdout=subprocess.DEVNULL)
        for key, name in zip(ids(board), ("one", "two"), strict=True)
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert leaderboard.check(Path("LB")) == []
    assert [models for _, models in order(page(board))] == [["one-3", "two-3"]]


def test_a_run_folder_is_no_leaderboard(cli: Any, run_folder: Path) -> None:
    argv = ("evaluate", "--model", "runs/a", "--attack", "fgsm", "--eps", "0,0.1", "-n", "20")
    assert cli(*argv).code == 0
    os.rename(cli.folder / "runs/a", cli.folder / "a")
    record, fates = made([90, 60, 50])
    record.save("LB", fates)
    before = cli.files()
    for words in ([], ["LB/records"]):
        ran = cli("leaderboard", *words)
        assert ran.is_one_clear_line and ran.err.rstrip().endswith("choose from LB"), ran
    for command in (
        ("leaderboard", "a"),
        ("leaderboard", "a", "build"),
        (*argv[:2], "a", *argv[3:], "--leaderboard", "a"),
    ):
        ran = cli(*command)
        assert ran.is_one_clear_line and "a is the folder of a run, not of a leaderboard" in ran.err, ran
    assert cli.files() == before
