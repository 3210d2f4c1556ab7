"""`train`, `evaluate` and sweeps killed by SIGKILL at random moments end, after --resume, as if nothing had happened.

Each go is a process of its own, forked from a server that has torch loaded, and saves after every step: so that
most kills meet a process that is writing.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from advbench import leaderboard
from advbench.checkpoint import read_card
from advbench.files import sha256_file
from advbench.record import load_records

pytestmark = pytest.mark.slow

KILLS = [3, pytest.param(200, marks=pytest.mark.long)]  # of each command, and
SWEPT = [2, pytest.param(80, marks=pytest.mark.long)]  # of each sweep
TRAIN = ["train", "--method", "pgd-at", "--dataset", "digits", "--arch", "mlp", "--eps", "0.1", "--device", "cpu"]
TRAIN += ["--epochs", "3", "--batch-size", "32"]
TRAIN += [word for field in ("train_n=256", "validation.n=32", "inner.steps=2") for word in ("--set", field)]
SWEEP = [{"pgd-at": "pgd-at,standard", "3": "1"}.get(word, word) for word in TRAIN]
EVALUATE = ["evaluate", "--attack", "pgd,square", "--eps", "0.05,0.1,0.2", "-n", "40", "--device", "cpu"]
EVALUATE += ["--set", "steps=10", "--set", "n_queries=60"]

GO = """
import os, sys
for number, name in ((1, "out.txt"), (2, "err.txt")):
    os.dup2(os.open(os.path.join({folder!r}, name), os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
import torch
from advbench.cli import run
from advbench.evaluator import journal
from advbench.trainer import loop
torch.set_num_threads(1)
loop.SAVE_SECONDS = journal._SAVE_INTERVAL = 0.0
sys.exit(run({argv!r}))
"""


class Go:
    """Starts a command line in a process of its own; what it says goes into `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        loaded = ["advbench.cli.evaluate", "advbench.evaluator", "advbench.trainer", "matplotlib.figure"]
        self.context.set_forkserver_preload(loaded)

    def __call__(self, *argv: object) -> BaseProcess:
        code = GO.format(folder=str(self.folder), argv=[str(word) for word in argv])
        process = self.context.Process(target=exec, args=(code, {}))
        process.start()
        return process

    def check(self, process: BaseProcess, code: int) -> None:
        assert process.exitcode == code, (self.folder / "err.txt").read_text()[-2000:]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Go:
    go = Go(tmp_path_factory.mktemp("said"))
    whole(go, "--version")  # the server has loaded torch: no later time counts that
    return go


def whole(go: Go, *argv: object) -> float:
    """Run a command to its end; the seconds it took."""
    began = time.monotonic()
    process = go(*argv)
    process.join(timeout=300)
    go.check(process, 0)
    return time.monotonic() - began


def killed(go: Go, argv: list[str], out: Path, seconds: float, seed: int, into: str = "--out") -> int:
    """Run a command into `out`, killed after random times up to `seconds` and resumed until it ends: how many kills.

    The times grow slowly: what cannot be saved, start and end, may take longer than `seconds` beside other work.
    """
    draw = random.Random(seed)
    for kills in range(100):
        process = go(*argv, into, out, "--resume")
        process.join(timeout=draw.uniform(0, seconds * (1 + kills / 10)))
        if process.exitcode is None:
            process.kill()
        process.join()
        if process.exitcode == 0:
            return kills
        go.check(process, -signal.SIGKILL)
    raise AssertionError("no end after 100 kills")


def until_killed(
    go: Go, argv: list[str], folder: Path, seconds: float, kills: int, into: str = "--out"
) -> Iterator[Path]:
    """Runs of a command, each into a place of its own, until there were so many kills.

    `seconds` was measured once: where none came in time, the machine has become faster.
    """
    done = 0
    for number in itertools.count():
        out = folder / str(number)
        times = killed(go, argv, out, seconds, seed=number, into=into)
        done, seconds = done + times, seconds if times else 0.8 * seconds
        yield out
        if done >= kills:
            return


@pytest.fixture(scope="module")
def trained(go: Go, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("kills") / "whole"
    return out, whole(go, *TRAIN, "--out", out)


@pytest.mark.parametrize("kills", KILLS)
def test_train(go: Go, trained: tuple[Path, float], tmp_path: Path, kills: int) -> None:
    run, seconds = trained
    for out in until_killed(go, TRAIN, tmp_path, seconds, kills):
        assert read_card(out).finished
        for name in ("model.safetensors", "last.safetensors"):
            assert sha256_file(out / name) == sha256_file(run / name)
        assert not list(out.rglob(".*.tmp"))


@pytest.mark.parametrize("kills", KILLS)
def test_evaluate(go: Go, trained: tuple[Path, float], tmp_path: Path, kills: int) -> None:
    argv = [*EVALUATE, "--model", str(trained[0])]
    seconds = whole(go, *argv, "--out", tmp_path / "whole")
    (expected,), _ = load_records(tmp_path / "whole")
    for out in until_killed(go, argv, tmp_path, seconds, kills):
        (record,), damaged = load_records(out)
        assert record.id == expected.id and not damaged
        assert record.curve == expected.curve and record.flags == expected.flags
        assert not list(out.rglob("*.journal*"))


@pytest.fixture(scope="module")
def swept(go: Go, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("kills") / "sweep"
    return out, whole(go, *SWEEP, "--out", out)


@pytest.mark.parametrize("kills", SWEPT)
def test_train_sweep(go: Go, swept: tuple[Path, float], tmp_path: Path, kills: int) -> None:
    sweep, seconds = swept
    runs = sorted(path.name for path in sweep.iterdir())
    assert len(runs) == 2
    for out in until_killed(go, SWEEP, tmp_path, seconds, kills):
        assert sorted(path.name for path in out.iterdir()) == runs
        for run in runs:
            assert read_card(out / run).finished
            assert sha256_file(out / run / "model.safetensors") == sha256_file(sweep / run / "model.safetensors")
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.parametrize("kills", SWEPT)
def test_evaluate_several(go: Go, swept: tuple[Path, float], tmp_path: Path, kills: int) -> None:
    """Into one leaderboard, whose tables hold each model once in the end."""
    models = [word for run in sorted(swept[0].iterdir()) for word in ("--model", str(run))]
    argv = [*EVALUATE, "--seed", "1", "--probes", "off", *models]
    seconds = whole(go, *argv, "--out", tmp_path / "whole")
    expected, _ = load_records(tmp_path / "whole")
    assert len(expected) == 2
    for folder in until_killed(go, argv, tmp_path, seconds, kills, into="--leaderboard"):
        records, damaged = load_records(folder / "records")
        assert [(record.id, record.curve) for record in records] == [(one.id, one.curve) for one in expected]
        assert not damaged and leaderboard.check(folder) == []
        assert not list(folder.rglob("*.journal"))
    assert not list(tmp_path.rglob(".*.tmp"))
