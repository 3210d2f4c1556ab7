"""Worker processes find what one process finds, and stop, resume and fail like one process."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zygote import PYTHON

from advbench.attacks.apgd import APGD
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Evaluation, Journal, Settings, evaluate
from advbench.evaluator.evaluate import bare
from advbench.evaluator.parallel import processes, share
from advbench.evaluator.plan import Plan, plan
from advbench.models import build

pytestmark = pytest.mark.usefixtures("started_by_fork")

EPS = ["0", "0.05", "0.1", "0.15"]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(61))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=3)
    x, y = load("digits", "train").batch(slice(0, 800))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(60):
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()
    return net.eval()


def measured(
    net: nn.Module,
    data: Dataset,
    processes: int | None,
    *,
    journal: Journal | None = None,
    resume: bool = False,
    keep_points: bool = False,
    probes: bool = False,
) -> Evaluation:
    attacks = ["pgd", "apgd-t", "square"]
    settings = Settings(
        attack=attacks,
        attack_settings={"steps": 8, "n_queries": 100},
        eps=EPS,
        processes=processes,
        keep_points=keep_points,
        probes=probes,
    )
    return evaluate(net, data, settings, journal=journal, resume=resume)


@pytest.fixture(scope="module")
def alone(net: nn.Module, digits: Dataset) -> Evaluation:
    return measured(net, digits, 1)


def rounds(count: int) -> Callable[[], bool]:
    """A `stop` that returns true after `count` rounds."""
    left: Iterator[int] = iter(range(count))
    return lambda: next(left, None) is None


# A net that calls `end` in every process but the one that made it.
ELSEWHERE = """
import os, signal, sys
from torch import nn
from advbench.errors import UserError

class Elsewhere(nn.Module):
    def __init__(self, net, end):
        super().__init__()
        self.net, self.end, self.home = net, end, os.getpid()

    def forward(self, x):
        if os.getpid() != self.home:
            self.end()
        return self.net(x)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Other(Elsewhere):
    def forward(self, x):
        return super().forward(x) * (1 if os.getpid() == self.home else -1)

def fail():
    raise KeyError("unheard of")

passes = 0

def fail_later():
    global passes
    passes += 1
    if passes > 40:
        raise KeyError("unheard of")

def complain():
    raise UserError("not on this machine")

def talk():
    print("this is no answer")
    open(os.path.join(os.path.dirname(__file__), "talked"), "w").close()
"""


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("module")
    (folder / "elsewhere_net.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("elsewhere_net")
    sys.modules.pop("elsewhere_net", None)


@pytest.mark.slow
def test_what_workers_find_is_what_one_process_finds(net: nn.Module, digits: Dataset) -> None:
    one, three = (measured(net, digits, count, keep_points=True, probes=True) for count in (1, 3))
    assert three.record.id == one.record.id
    assert [flag.name for flag in three.record.flags] == [flag.name for flag in one.record.flags]
    assert np.array_equal(three.fates.by, one.fates.by) and len(set(one.fates.fell.tolist())) > 2
    assert three.points.keys() == one.points.keys() and one.points
    assert all(torch.equal(three.points[row], point) for row, point in one.points.items())
    assert three.record.forwards > one.record.forwards > 0  # idle slots at the end of each share count


@pytest.mark.slow
def test_minimum_norm_attacks_and_nets_that_print(net: nn.Module, digits: Dataset, elsewhere: Any) -> None:
    asked: dict[str, Any] = {"attack": "ddn", "norm": "l2", "eps": ["0.5", "1"], "attack_settings": {"steps": 20}}
    asked["probes"] = False
    one = evaluate(net, digits, Settings(**asked))
    two = evaluate(
        elsewhere.Elsewhere(net, elsewhere.talk),
        digits,
        Settings(**asked, processes=2),
    )
    assert np.array_equal(one.fates.norm, two.fates.norm)  # type: ignore[arg-type]
    assert (Path(elsewhere.__file__).parent / "talked").exists()  # written by the second process


@pytest.mark.slow
def test_a_stopped_evaluation_resumes_with_the_same_number_of_processes(
    net: nn.Module, digits: Dataset, alone: Evaluation, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    with pytest.raises(Interrupted, match="saved"):
        measured(net, digits, 2, journal=Journal(path, stop=rounds(6)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["journal", "journal.part1of2"]
    journal = Journal(path)
    resumed = measured(net, digits, 1, journal=journal, resume=True)
    assert resumed.record.id == alone.record.id
    journal.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_damaged_share_is_named(net: nn.Module, digits: Dataset, alone: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pytest.raises(Interrupted):
        measured(net, digits, 2, journal=Journal(path, stop=rounds(6)))
    part = tmp_path / "journal.part1of2"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"part1of2 is damaged"):
        measured(net, digits, 2, journal=Journal(path), resume=True)
    fresh = measured(net, digits, 2, journal=Journal(path))  # a new evaluation ignores the old journals
    assert fresh.record.id == alone.record.id


@pytest.mark.slow
def test_the_error_of_a_failed_or_killed_worker_is_raised(net: nn.Module, digits: Dataset, elsewhere: Any) -> None:
    with pytest.raises(UserError, match="not on this machine"):
        measured(elsewhere.Elsewhere(net, elsewhere.complain), digits, 2)
    with pytest.raises(RuntimeError, match="KeyError in a worker process: 'unheard of'"):
        measured(elsewhere.Elsewhere(net, elsewhere.fail), digits, 2)
    with pytest.raises(UserError, match="gives other results in another process"):
        measured(elsewhere.Other(net, elsewhere.talk), digits, 2)
    with pytest.raises(Interrupted, match="exit status -9"):
        measured(elsewhere.Elsewhere(net, elsewhere.die), digits, 2)


@pytest.mark.slow
def test_a_net_that_cannot_be_sent_to_workers_is_attacked_here(
    net: nn.Module, digits: Dataset, alone: Evaluation, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone.fates.fell
    refused = elsewhere.Elsewhere(net, lambda: None)  # pickle takes no lambda
    assert np.array_equal(measured(refused, digits, 2).fates.fell, expected)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if not Path(folder, "elsewhere_net.py").exists()])
    foreign = elsewhere.Elsewhere(net, elsewhere.complain)  # its module is not found by other processes
    assert np.array_equal(measured(foreign, digits, 2).fates.fell, expected)


@pytest.mark.slow
def test_a_share_is_not_taken_for_the_whole_when_workers_do_not_start(
    net: nn.Module, digits: Dataset, alone: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    with pytest.raises(Interrupted):
        measured(net, digits, 2, journal=Journal(path, stop=rounds(6)))
    monkeypatch.setattr(processes, "_hand_over", lambda process, job: False)
    with pytest.warns(UserWarning, match="this one starts over alone"):
        resumed = measured(net, digits, 2, journal=Journal(path), resume=True)
    assert resumed.record.id == alone.record.id


@pytest.mark.slow
def test_a_worker_that_fails_stops_this_process_too(net: nn.Module, digits: Dataset, elsewhere: Any) -> None:
    late = elsewhere.Elsewhere(net, elsewhere.fail_later)  # this process's own share would take hours
    with pytest.raises(RuntimeError, match="KeyError"):
        evaluate(
            late, digits, Settings(attack="square", eps=["1e-6"], attack_settings={"n_queries": 10**6}, processes=2)
        )


@pytest.mark.slow
def test_workers_end_when_the_starting_process_is_killed(tmp_path: Path) -> None:
    """Linux only: the children of the killed process are found in /proc."""
    program = (
        "import sys, torch; torch.set_num_threads(1); from pathlib import Path;"
        "from advbench.data import load; from advbench.models import build;"
        "from advbench.evaluator import Journal, Settings, evaluate;"
        "data = load('digits', 'test').subset(range(61));"
        "net = build('mlp', num_classes=10, in_channels=1, image_size=8, seed=3);"
        "asked = Settings(attack='square', eps=['1e-6'], attack_settings={'n_queries': 10**6}, processes=2);"
        "evaluate(net, data, asked, journal=Journal(Path(sys.argv[1]) / 'journal'))"
    )
    starter = subprocess.Popen([PYTHON, "-c", program, str(tmp_path)])
    try:
        (worker,) = wait_for(lambda: children(starter.pid))
        lock = tmp_path / ".lockjournal.part1of2"
        wait_for(lambda: [lock] if lock.exists() else [])  # the worker is running
    finally:
        starter.kill()
        starter.wait()
    wait_for(lambda: [] if alive(int(str(worker))) else [worker])
    assert (tmp_path / "journal.part1of2").exists() and not lock.exists()


def alive(process: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def children(parent: int) -> list[int]:
    found = []
    for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if "advbench.evaluator.parallel.worker" in Path(f"/proc/{one}/cmdline").read_text():
                found.append(int(one))
    return found


def wait_for(look: Callable[[], list[object]] | Callable[[], list[int]]) -> list[object]:
    for _ in range(600):
        found = look()
        if found:
            return list(found)
        time.sleep(0.1)
    raise AssertionError("nothing was found within a minute")


def planned(data: Dataset, attack: str | APGD = "autoattack", engine: str = "own") -> Plan:
    settings = Settings(attack=attack, eps=["0.1"], engine=engine, precision="fp32")
    net = build("mlp", num_classes=10, in_channels=1, image_size=8)
    return plan(settings, bare(net, data), data, bf16_pays=lambda *attacks: False)


class Slow(nn.Module):
    """A net so slow that workers are worth their start; `noise` makes it random."""

    def __init__(self, net: nn.Module, seconds: float = 0.01, noise: float = 0.0) -> None:
        super().__init__()
        self.net, self.seconds, self.noise = net, seconds, noise

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.net(x) + self.noise * torch.rand(len(x), 1)  # type: ignore[no-any-return]


def test_how_many_are_worth_their_start(net: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(net: nn.Module, run: Plan, slots: int = 8) -> int:
        return share.how_many(net, digits, run, slots=slots)

    now = [0.0]  # a clock that stands still but for the naps of `Slow`: of a busy machine the passes take longer
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    run = planned(digits)
    assert count(Slow(net), run) == 1  # PyTorch has one thread
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert count(Slow(net), run) == 4
    monkeypatch.setattr(share, "processes_that_fit", lambda net, x: 3)
    assert count(Slow(net), run) == 3
    assert count(Slow(net), run, slots=32) == 2  # the images fill the slots twice
    assert count(Slow(net), run, slots=64) == 1
    assert count(net, run) == 1  # faster than a worker starts
    assert count(Slow(net), planned(digits, APGD(name="apgd-ce", steps=3))) == 1
    assert count(Slow(net, noise=1.0), run) == 1
    assert count(Slow(net), replace(run, curve="severity")) == 1
    assert count(Slow(net), planned(digits, engine="reference")) == 1
    assert share.how_many(net, digits, run, slots=64, requested=3) == 3
    assert share.how_many(Slow(net, noise=1.0), digits, run, slots=64, requested=3) == 1
    assert share.how_many(net, digits, run, slots=64, requested=1000) == len(digits)

    def full(self: Slow, x: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as context:
        context.setattr(Slow, "forward", full)
        assert count(Slow(net), run) == 1
    monkeypatch.setattr(Slow, "__module__", "__main__")
    assert count(Slow(net), run) == 1
