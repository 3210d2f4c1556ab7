"""Two processes that share the samples give the record of one. Their journals are resumed, or refused in one line."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from advbench.data import load
from advbench.models import build
from advbench.record import load_record

pytestmark = pytest.mark.usefixtures("started_by_fork")

PROGRAM = "import sys; from advbench.cli import run; sys.exit(run(sys.argv[1:]))"
EVALUATE = [
    "evaluate", "--dataset", "digits", "--arch", "mlp", "--attack", "pgd,apgd-t", "--set", "steps=6",
    "--eps", "0,0.05,0.1", "-n", "61", "--device", "cpu", "--precision", "bf16",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=3)
    x, y = load("digits", "train").batch(slice(0, 800))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(60):
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()
    save_file(net.state_dict(), path)
    return path


def run(folder: Path, processes: int, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """Run `advbench WORDS` in `processes` processes, joined by torchrun's environment variables."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} if processes > 1 else {}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *words], cwd=folder, env={**shared, **place},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    ended = []
    for process in started:
        out, err = process.communicate(timeout=300)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return ended


def record_of(folder: Path) -> Path:
    (path,) = folder.rglob("records/*/*/*.json")
    return path


@pytest.fixture(scope="module")
def one(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The record that one process makes, and what it prints."""
    folder = tmp_path_factory.mktemp("one")
    (alone,) = run(folder, 1, *EVALUATE, "--model", str(weights))
    assert alone.returncode == 0, alone.stderr
    return record_of(folder), alone.stdout


@pytest.mark.slow
def test_the_record_of_two_processes_is_that_of_one(weights: Path, one: tuple[Path, str], tmp_path: Path) -> None:
    argv = [*EVALUATE, "--model", str(weights)]
    first, second = run(tmp_path / "two", 2, *argv)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == "" and second.stderr == ""
    two = record_of(tmp_path / "two")
    assert one[0].name == two.name
    a, b = load_record(one[0])[0], load_record(two)[0]
    assert [flag.name for flag in a.flags] == [flag.name for flag in b.flags]
    assert first.stdout.splitlines()[1:4] == one[1].splitlines()[1:4]
    assert not list((tmp_path / "two").rglob("*.journal*"))
    (again,) = run(tmp_path / "two", 1, *argv, "--resume")  # a record is found by any number of processes
    assert again.returncode == 0 and "nothing was run" in again.stdout


STOPPED = """
import sys
from advbench.cli import run, stop
rounds = iter(range(int(sys.argv[1])))
stop.Stop.__call__ = lambda self: next(rounds, None) is None
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.slow
def test_interrupted_shares_resume_or_are_refused(
    weights: Path, one: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*EVALUATE, "--model", str(weights)]
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", STOPPED)
    stopped = run(tmp_path / "two", 2, "12", *argv)
    assert [process.returncode for process in stopped] == [3, 3], stopped[1].stderr
    monkeypatch.undo()
    kept = sorted(path.name.rpartition(".")[2] for path in (tmp_path / "two").rglob("*.journal*"))
    assert kept == ["journal", "part1of2"]
    three = run(tmp_path / "two", 3, *argv, "--resume")
    assert [process.returncode for process in three] == [2, 2, 2], three[0].stderr
    assert "begun by 2 processes (torchrun --nproc-per-node 2): resume with the same number" in three[0].stderr
    shutil.copytree(tmp_path / "two", tmp_path / "local")
    (local,) = run(tmp_path / "local", 1, *argv, "--resume")  # this process starts the other one itself
    assert local.returncode == 0, local.stderr
    assert record_of(tmp_path / "local").name == one[0].name
    resumed = run(tmp_path / "two", 2, *argv, "--resume")
    assert [process.returncode for process in resumed] == [0, 0], resumed[0].stderr
    assert record_of(tmp_path / "two").name == one[0].name
