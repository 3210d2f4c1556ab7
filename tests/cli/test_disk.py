"""Full and read-only disks: one line, exit code 2, existing files stay whole, and the work resumes on a freed disk."""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from advbench import leaderboard
from advbench.checkpoint import read_card
from advbench.evaluator import journal
from advbench.files import sha256_file
from advbench.record import load_records
from advbench.trainer import folder

TRAIN = "train --method standard --dataset digits --arch mlp --eps 0.1 --epochs 2 --device cpu"
TRAIN += " --set train_n=128 --set validation.n=32 --set optim.lr=0.05"
EVALUATE = "evaluate --model runs/a --attack pgd --eps 0.05,0.1 -n 20 --set steps=2"
ATTACK = "attack --model runs/a --attack pgd -n 4 --set steps=2"


def failed_in_one_line(ran: Any, *words: str) -> bool:
    last = ran.err.splitlines()[-1]
    once = ran.err.count("error: ") == 1 and "Traceback" not in ran.err
    return ran.code == 2 and once and last.startswith("error: ") and all(word in last for word in words)


@pytest.mark.parametrize(
    ("command", "out"),
    [(TRAIN, "--out DISK/run"), (EVALUATE, "--out DISK"), (EVALUATE, "--leaderboard DISK"), (ATTACK, "--out DISK/x")],
)
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_writing_anything(cli: Any, run_folder: Path, disk: Any, command: str, out: str, trouble: str) -> None:
    argv = shlex.split(f"{command} {out}".replace("DISK", str(disk.folder)))
    (disk.folder / "mine").write_bytes(b"x")
    disk.fill() if trouble == "full" else disk.read_only(True)
    ran = cli(*argv)
    if trouble == "full":
        assert failed_in_one_line(ran, f"cannot write {disk.folder}", "No space left on device")
        disk.free()
    else:
        assert ran.is_one_clear_line and f"cannot write {disk.folder}" in ran.err  # before any work
        disk.read_only(False)
    left = {name: content for name, content in disk.contents().items() if not name.endswith("recipe.toml")}
    assert left == {"mine": b"x"}
    again = cli(*argv, *(["--force"] if command == ATTACK else ["--resume"]))
    assert again.code == 0, again


def test_a_disk_that_fills_up_while_training(
    cli: Any, disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*shlex.split(TRAIN), "--out"]
    assert cli(*argv, tmp_path / "whole").code == 0
    run, kept = disk.folder / "run", {}
    real = folder.save

    def save(*args: Any, **how: Any) -> None:
        if (run / "run.json").exists():
            kept.update(disk.contents())
            disk.fill()
        real(*args, **how)

    monkeypatch.setattr(folder, "save", save)
    assert failed_in_one_line(cli(*argv, run), "state.bin", "No space left")
    monkeypatch.undo()
    assert len(kept) == 6 and disk.contents() == kept and not read_card(run).finished
    disk.free()
    assert cli(*argv, run, "--resume").code == 0
    for name in ("model.safetensors", "last.safetensors"):
        assert sha256_file(run / name) == sha256_file(tmp_path / "whole" / name)


def test_a_disk_that_fills_up_while_evaluating(
    cli: Any, run_folder: Path, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*shlex.split(EVALUATE), "--out", disk.folder]
    monkeypatch.setattr(journal, "_SAVE_INTERVAL", 0.0)
    real, saves = journal.write_sealed, []

    def write(path: Path, payload: bytes) -> None:
        saves.append(path)
        if len(saves) == 3:
            disk.fill()
        real(path, payload)

    monkeypatch.setattr(journal, "write_sealed", write)
    assert failed_in_one_line(cli(*argv), ".journal", "No space left")
    disk.free()
    assert len(saves) == 3 and saves[0].exists() and disk.contents() == {}  # the second save is whole
    monkeypatch.setattr(journal, "write_sealed", real)
    assert cli(*argv, "--resume").code == 0 and not saves[0].exists()


def test_tables_stay_whole_on_a_full_disk(cli: Any, run_folder: Path, disk: Any) -> None:
    argv = [*shlex.split(EVALUATE), "--leaderboard", disk.folder]
    assert cli(*argv).code == 0
    before = disk.contents()
    disk.fill()
    assert failed_in_one_line(cli(*argv, "--seed", "1"), "No space left")
    disk.free()
    assert disk.contents() == before and leaderboard.check(disk.folder) == []
    assert cli(*argv, "--seed", "1").code == 0 and leaderboard.check(disk.folder) == []


def test_a_figure_on_a_full_disk(cli: Any, run_folder: Path, disk: Any) -> None:
    for seed in (0, 1):
        assert cli(*shlex.split(EVALUATE), "--seed", seed, "--out", cli.folder / f"s{seed}").code == 0
    disk.fill()
    ran = cli("compare", "s0", "s1", "--plot", disk.folder / "c.svg")
    assert failed_in_one_line(ran, "c.svg", "No space left") and disk.contents() == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_standard_output_that_takes_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "advbench", "list", "attacks"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("argv", "closed"),
    [
        *itertools.product(["list attacks", "--help", "train --help"], [">&-", "<&- >&-", "| true"]),
        ("train --epochs 1", "| true"),  # seconds of loading for each
    ],
)
def test_standard_output_that_is_closed(tmp_path: Path, argv: str, closed: str) -> None:
    """Results that reach nobody are no success, and above all no regression (1); nothing is trained."""
    wait = "sleep 0.5; " if closed == "| true" else ""
    command = f"set -o pipefail; ({wait}exec {shlex.quote(sys.executable)} -m advbench {argv}) {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("error: cannot write, perhaps standard output: ")
    assert not list(tmp_path.glob("runs/*/run.json"))


def test_standard_error_that_is_closed(tmp_path: Path) -> None:
    command = f"exec {shlex.quote(sys.executable)} -m advbench list attacks 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "autoattack" in done.stdout


def test_a_file_system_without_hard_links_keeps_the_record(
    cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    assert cli(*shlex.split(EVALUATE), "--leaderboard", "board").code == 0
    records, damaged = load_records(cli.folder / "board/records")
    assert len(records) == 1 and not damaged
    assert cli(*shlex.split(EVALUATE), "--leaderboard", "board").code == 0
    assert load_records(cli.folder / "board/records") == (records, [])


def test_code_from_outside_that_ends_the_process(cli: Any, run_folder: Path) -> None:
    (cli.folder / "leaves.py").write_text("import sys\ndef net(): sys.exit(0)")
    ran = cli("evaluate", "--model", "leaves:net", "--dataset", "digits", "--eps", "0.1", "--attack", "fgsm")
    assert ran.code == 2 and ran.err.splitlines()[-1] == "error: code from outside advbench called sys.exit(0)"


def test_a_bug_does_not_exit_as_a_regression() -> None:
    """Exit code 1 means a regression, but is also Python's code for an uncaught exception."""
    code = "import advbench.cli as c; c.run = lambda argv: 1 / 0; c.main()"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "ZeroDivisionError" in done.stderr
