"""`--on ray`: parsing, and a sweep on this machine during which one worker is killed."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from advbench.checkpoint import read_card
from advbench.cli.cluster import Place, parse_place
from advbench.errors import UserError

QUICK = ["--dataset", "digits", "--arch", "mlp", "--device", "cpu", "--epochs", "4", "--set", "train_n=512"]
QUICK += ["--set", "validation.n=32", "--set", "inner.steps=2"]
MARK = "ADVBENCH_TEST_OF_RAY"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("local", None),
        ("ray", Place(None)),
        ("ray:auto,gpus=0.5", Place("auto", gpus=0.5)),
        ("ray:ray://head:10001,cpus=4,gpus=0", Place("ray://head:10001", 4.0, 0.0)),
    ],
)
def test_valid_places(text: str, place: Place | None) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "Ray", "slurm", "ray,cpus=two", "ray,memory=4", "ray,cpus=-1", "ray,cpus=nan"])
def test_invalid_places(text: str) -> None:
    with pytest.raises(UserError, match=r"ray:ADDRESS|ray\[:ADDRESS\]"):
        parse_place(text)


@pytest.mark.parametrize("command", [["train", *QUICK], ["evaluate", "--model", "runs/a"]])
def test_without_its_package(cli: Any, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = cli(*command, "--on", "ray")
    assert ran.is_one_clear_line and "pip install 'advbench[scale]'" in ran.err


def working(mark: str) -> list[int]:
    """The Ray processes that are training and have `mark` in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            title, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::train_task") and mark.encode() in environment:
            found.append(int(place.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the package ray: pip install '.[scale]'")
def test_a_sweep_outlives_a_killed_worker(tmp_path: Path) -> None:
    mark = f"{MARK}={uuid.uuid4()}"
    shared = {**os.environ, MARK: mark.partition("=")[2], "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    program = [sys.executable, "-m", "advbench"]
    lists = ["--method", "trades,pgd-at", "--eps", "0.1,0.2", "--seed", "0,1,2"]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [*program, "train", *lists, *QUICK, "--out", "sweep", "--on", "ray"],
            cwd=tmp_path, env=shared, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline, killed = time.monotonic() + 600, 0
        while process.poll() is None and time.monotonic() < deadline:
            busy = working(mark)
            if not killed and busy and list(tmp_path.glob("sweep/*/run.json")):
                killed = busy[-1]
                os.kill(killed, signal.SIGKILL)
            time.sleep(0.05)
        process.kill()
    assert process.wait() == 0, (tmp_path / "output").read_text()
    assert killed
    runs = sorted((tmp_path / "sweep").iterdir())
    assert len(runs) == 12 and all(read_card(run).finished for run in runs)
    models = [word for run in runs for word in ("--model", str(run.relative_to(tmp_path)))]
    asked = ["--attack", "fgsm", "--eps", "0,0.1", "-n", "20", "--leaderboard", "board", "--on", "ray"]
    ran = subprocess.run(
        [*program, "evaluate", *models, *asked], cwd=tmp_path, env=shared, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = list(csv.DictReader((tmp_path / "board" / "digits-linf.csv").read_text().splitlines()))
    points = [(row["model"], row["eps_text"]) for row in rows]
    assert sorted(points) == sorted((f"sweep/{run.name}", eps) for run in runs for eps in ("0", "0.1"))
    assert len({row["record"] for row in rows}) == 12
