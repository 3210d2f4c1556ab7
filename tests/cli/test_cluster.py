"""`--on`: parsing; and `--on ray`: a sweep on this machine during which one worker is killed, and signals."""

from __future__ import annotations

import csv
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zygote import PYTHON

from advbench.checkpoint import read_card
from advbench.cli.cluster import parse_place, ray, slurm
from advbench.errors import Interrupted, UserError

QUICK = ["--dataset", "digits", "--arch", "mlp", "--device", "cpu", "--epochs", "4", "--set", "train_n=512"]
QUICK += ["--set", "validation.n=32", "--set", "inner.steps=2"]
MARK = "ADVBENCH_TEST_OF_RAY"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("local", None),
        ("ray", ray.Place(None)),
        ("ray:auto,gpus=0.5", ray.Place("auto", gpus=0.5)),
        ("ray:ray://head:10001,cpus=4,gpus=0", ray.Place("ray://head:10001", 4.0, 0.0)),
        ("slurm", slurm.Place()),
        (
            "slurm:partition=gpu,time=240,gpus=1,cpus=8,mem_gb=32,array=4,gres=shard:1",
            slurm.Place(time=240, gpus=1, cpus=8, mem_gb=32, array=4, options={"partition": "gpu", "gres": "shard:1"}),
        ),
        (
            "slurm:partition=long,short,exclude=n[1-3],n7,time=5",
            slurm.Place(time=5, options={"partition": "long,short", "exclude": "n[1-3],n7"}),
        ),
        ("slurm:executor=local,gpus=0", slurm.Place(executor="local", gpus=0)),
    ],
)
def test_valid_places(text: str, place: Any) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "choose from local, ray, ray:ADDRESS, slurm, slurm:"),
        ("Ray", "did you mean ray"),
        ("slurmy", "did you mean slurm"),
        ("ray,cpus=two", r"write ray\[:ADDRESS\]"),
        ("ray,memory=4", r"write ray\[:ADDRESS\]"),
        ("ray,cpus=-1", r"write ray\[:ADDRESS\]"),
        ("ray,cpus=nan", r"write ray\[:ADDRESS\]"),
        ("ray,cpus=1,cpus=2", "cpus is given twice"),
        ("slurm:time=1,time=2", "time is given twice"),
        ("slurm:partition=a,partition=b", "partition is given twice"),
        ("slurm:executor=local,executor=debug", "executor is given twice"),
        ("slurm:partitoin=gpu", "did you mean partition.*choose from account, array, "),
        ("slurm:gpu", "did you mean gpus"),
        ("slurm:partition=", "partition needs a value"),
        ("slurm:time=4h", "time must be a whole number, from 1"),
        ("slurm:time=0", "time must be a whole number, from 1"),
        ("slurm:gpus=-1", "gpus must be a whole number$"),
        ("slurm:executor=pbs", "choose from debug, local, slurm"),
    ],
)
def test_invalid_places(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_place(text)


@pytest.mark.parametrize("command", [["train", *QUICK], ["evaluate", "--model", "runs/a"]])
@pytest.mark.parametrize(("place", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_without_its_package(
    cli: Any, monkeypatch: pytest.MonkeyPatch, command: list[str], place: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    ran = cli(*command, "--on", place)
    assert ran.is_one_clear_line and "pip install 'advbench[scale]'" in ran.err
    assert not cli.files()


def working(mark: str) -> list[int]:
    """The Ray processes that are training and have `mark` in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            title, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::perform") and mark.encode() in environment:
            found.append(int(place.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the package ray: pip install '.[scale]'")
def test_a_sweep_outlives_a_killed_worker(tmp_path: Path) -> None:
    mark = f"{MARK}={uuid.uuid4()}"
    shared = {**os.environ, MARK: mark.partition("=")[2], "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    program = [PYTHON, "-m", "advbench"]
    lists = ["--method", "pgd-at", "--eps", "0.1", "--seed", "0,1,2"]
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
    assert len(runs) == 3 and all(read_card(run).finished for run in runs)
    models = [word for run in runs[:2] for word in ("--model", str(run.relative_to(tmp_path)))]
    asked = ["--attack", "fgsm", "--eps", "0,0.1", "-n", "20", "--leaderboard", "board", "--on", "ray"]
    ran = subprocess.run(
        [*program, "evaluate", *models, *asked], cwd=tmp_path, env=shared, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = list(csv.DictReader((tmp_path / "board" / "digits-linf.csv").read_text().splitlines()))
    points = [(row["model"], row["eps_text"]) for row in rows]
    assert sorted(points) == sorted((f"sweep/{run.name}", eps) for run in runs[:2] for eps in ("0", "0.1"))
    assert len({row["record"] for row in rows}) == 2


TASK = """
import importlib, pickle, sys
from advbench.errors import Interrupted
module, name, args, given = pickle.load(sys.stdin.buffer)
try:
    answer = getattr(importlib.import_module(module), name)(*args, **given)
except Interrupted:
    sys.exit(3)
sys.stdout.buffer.write(pickle.dumps(answer))
"""


class LikeRay:
    """What `cluster` uses of Ray, with processes of this machine: tasks, their interruption, and a handler of SIGTERM.

    `at_work` is called with the tasks while they run.
    """

    class RayError(Exception):
        def __init__(self, cause: Exception) -> None:
            super().__init__(str(cause))
            self.cause = cause

    def __init__(self, at_work: Callable[[list[Any]], None]) -> None:
        self.exceptions = SimpleNamespace(RayError=self.RayError)
        self.at_work, self.tasks, self.cancelled, self.forced = at_work, [], [], []

    def init(self, **_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(134))

    def is_initialized(self) -> bool:
        return False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def shutdown(self) -> None:
        for task in self.tasks:
            task.wait()
            task.stdout.close()

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        def start(function: Any, *args: Any, **given: Any) -> Any:
            task = subprocess.Popen([sys.executable, "-c", TASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.tasks.append(task)
            assert task.stdin is not None
            task.stdin.write(pickle.dumps((function.__module__, function.__name__, args, given)))
            task.stdin.close()
            return task

        return lambda function: SimpleNamespace(remote=lambda *args, **given: start(function, *args, **given))

    def wait(self, tasks: Sequence[Any], *, num_returns: int = 1, timeout: float) -> tuple[list[Any], list[Any]]:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and sum(task.poll() is not None for task in tasks) < num_returns:
            time.sleep(0.02)
            self.at_work(list(tasks))
        ended = [task for task in tasks if task.poll() is not None]
        return ended, [task for task in tasks if task not in ended]

    def cancel(self, task: Any, *, force: bool) -> None:
        (self.forced if force else self.cancelled).append(task)
        task.kill() if force else task.send_signal(signal.SIGINT)

    def get(self, task: Any) -> Any:
        if task.returncode:
            raise self.RayError(Interrupted("stopped") if task.returncode == 3 else KeyError("lost"))
        return pickle.loads(task.stdout.read())


@pytest.mark.slow
@pytest.mark.usefixtures("started_by_fork")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, "to the worker"])
def test_signals_save_the_tasks(cli: Any, monkeypatch: pytest.MonkeyPatch, number: Any) -> None:
    begun: list[bool] = []

    def at_work(tasks: list[Any]) -> None:
        if not begun and (cli.folder / "run/run.json").exists():
            begun.append(True)
            tasks[0].send_signal(signal.SIGUSR1) if number == "to the worker" else os.kill(os.getpid(), number)

    ray = LikeRay(at_work)
    monkeypatch.setitem(sys.modules, "ray", ray)
    argv = ["train", *QUICK, "--method", "pgd-at", "--epochs", "40", "--out", "run"]
    ran = cli(*argv, "--on", "ray")
    assert ran.code == 3 and ran.err.count("continue with") == 1, ran
    assert ran.err.splitlines()[-1].endswith(f"advbench {' '.join(argv)} --on ray --resume")
    assert [task.returncode for task in ray.cancelled] == ([] if number == "to the worker" else [3]) and not ray.forced
    assert not read_card(cli.folder / "run").finished
    ran = cli(*argv, "--resume")
    assert ran.code == 0 and "resuming after epoch" in ran.err and read_card(cli.folder / "run").finished
