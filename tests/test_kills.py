"""`train` and `evaluate` killed by SIGKILL at random moments end, after --resume, as if nothing had happened.

Each go is a process of its own, forked from a server that has torch loaded, and saves after every step: so that
most kills meet a process that is writing.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from advbench.checkpoint import read_card
from advbench.files import sha256_file
from advbench.record import load_records

pytestmark = pytest.mark.slow

KILLS = 10  # of each command
TRAIN = ["train", "--method", "pgd-at", "--dataset", "digits", "--arch", "mlp", "--eps", "0.1", "--device", "cpu"]
TRAIN += ["--epochs", "3", "--batch-size", "32"]
TRAIN += [word for field in ("train_n=256", "validation.n=32", "inner.steps=2") for word in ("--set", field)]
EVALUATE = ["evaluate", "--attack", "pgd,square", "--eps", "0.05,0.1,0.2", "-n", "60", "--device", "cpu"]
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
loop.SAVE_SECONDS = journal._EVERY = 0.0
sys.exit(run({argv!r}))
"""


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BaseProcess]:
    """Start a command line in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["advbench.cli.evaluate", "advbench.evaluator", "advbench.trainer"])
    folder = str(tmp_path_factory.mktemp("said"))

    def start(*argv: object) -> BaseProcess:
        code = GO.format(folder=folder, argv=[str(word) for word in argv])
        process = context.Process(target=exec, args=(code, {}))
        process.start()
        return process

    return start


def whole(go: Callable[..., BaseProcess], *argv: object) -> float:
    """Run a command to its end; the seconds it took."""
    began = time.monotonic()
    process = go(*argv)
    process.join(timeout=300)
    assert process.exitcode == 0
    return time.monotonic() - began


def killed(go: Callable[..., BaseProcess], argv: list[str], out: Path, seconds: float, seed: int) -> int:
    """Run a command into `out`, killed after random times up to `seconds` and resumed until it ends: how many kills.

    The times grow slowly: what cannot be saved, start and end, may take longer than `seconds` beside other work.
    """
    draw = random.Random(seed)
    for kills in range(100):
        process = go(*argv, "--out", out, "--resume")
        process.join(timeout=draw.uniform(0, seconds * (1 + kills / 10)))
        if process.exitcode is None:
            process.kill()
        process.join()
        if process.exitcode == 0:
            return kills
        assert process.exitcode == -signal.SIGKILL
    raise AssertionError("no end after 100 kills")


@pytest.fixture(scope="module")
def trained(go: Callable[..., BaseProcess], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("kills") / "whole"
    return out, whole(go, *TRAIN, "--out", out)


def test_train(go: Callable[..., BaseProcess], trained: tuple[Path, float], tmp_path: Path) -> None:
    run, seconds = trained
    done = 0
    for number in range(KILLS):
        out = tmp_path / str(number)
        done += killed(go, TRAIN, out, seconds, seed=number)
        assert read_card(out).finished
        for name in ("model.safetensors", "last.safetensors"):
            assert sha256_file(out / name) == sha256_file(run / name)
        assert not list(out.rglob(".*.tmp"))
        if done >= KILLS:
            break
    assert done >= KILLS


def test_evaluate(go: Callable[..., BaseProcess], trained: tuple[Path, float], tmp_path: Path) -> None:
    argv = [*EVALUATE, "--model", str(trained[0])]
    seconds = whole(go, *argv, "--out", tmp_path / "whole")
    (expected,), _ = load_records(tmp_path / "whole")
    done = 0
    for number in range(KILLS):
        out = tmp_path / str(number)
        done += killed(go, argv, out, seconds, seed=number)
        (record,), damaged = load_records(out)
        assert record.id == expected.id and not damaged
        assert record.curve == expected.curve and record.flags == expected.flags
        assert not list(out.rglob("*.journal*"))
        if done >= KILLS:
            break
    assert done >= KILLS
