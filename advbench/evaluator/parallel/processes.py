"""On a CPU, processes beside this one that attack shares of the images: they lose nothing to each other.

Two of them took 0.85 of the time of two threads that share the rows of each pass (AutoAttack on small MNIST nets). They
cost seconds to start, so short evaluations have none. Each is `python -m advbench.evaluator.parallel.worker`: it gets
its job on stdin and answers on stdout. When stdin ends, because this process closes it or is killed, it saves and
stops.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advbench.data.dataset import Dataset
from advbench.errors import Interrupted
from advbench.evaluator.parallel.merge import ShareResult, share
from advbench.evaluator.plan import Plan
from advbench.evaluator.runner import Runner
from advbench.evaluator.settings import Settings

READY = b"ready"


@dataclass(frozen=True)
class Job:
    """A share of an evaluation: the images `data`, which are `rows` of all of them, and what is done to them."""

    net: nn.Module
    data: Dataset
    rows: NDArray[np.int64]
    run: Plan
    settings: Settings
    slots: int
    threads: int
    random: bool
    right: NDArray[np.bool_]  # which of the clean images the model gets right
    journal: Path | None  # of the first process; this one's lies beside it
    asked: dict[str, Any]
    number: int
    of: int
    resume: bool


def job(runner: Runner, run: Plan, settings: Settings, number: int, of: int, *, resume: bool) -> Job:
    """The job of process `number` of so many."""
    rows = share(len(runner.data), number, of)
    return Job(
        runner.net,
        runner.data.subset(torch.from_numpy(rows)),
        rows,
        run,
        settings,
        runner.oracle.slots,
        threads=max(1, torch.get_num_threads() // of),
        random=runner.oracle.random,
        right=runner.correct[rows],
        journal=runner.journal.path,
        asked=runner.journal.asked,
        number=number,
        of=of,
        resume=resume,
    )


class Workers:
    """Those that have begun."""

    def __init__(self, found: list[Future[ShareResult]]) -> None:
        self._found = found

    def check(self) -> None:
        """Raise what has stopped one of them: UserError, Interrupted where it was ended from outside, or
        RuntimeError."""
        for one in self._found:
            if one.done():
                one.result()

    def results(self, poll: Callable[[], None]) -> list[ShareResult]:
        """What each found on its share. `poll` is called while they are waited for, and may raise; so does `check`."""
        while not all(one.done() for one in self._found):
            poll()
            self.check()
            time.sleep(0.05)
        return [one.result() for one in self._found]


@contextmanager
def at_work(jobs: list[Job]) -> Iterator[Workers | None]:
    """Inside, `jobs` are worked on, and PyTorch has as many threads here as there; None where the model cannot be
    handed to another process. Whoever is still at work in the end stops at its next step, and is waited for."""
    threads = torch.get_num_threads()
    started: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            with suppress(OSError):  # no room for more processes
                started += [_started() for _ in jobs]
            if len(started) == len(jobs) and all(list(pool.map(_begun, started, jobs))):
                torch.set_num_threads(jobs[0].threads)
                yield Workers([pool.submit(_outcome, one) for one in started])
            else:
                _end(started)
                yield None
        finally:
            torch.set_num_threads(threads)
            _end(started)


def _started() -> subprocess.Popen[bytes]:
    folders = [*sys.path, ""]  # models may be of modules in the current folder
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "advbench.evaluator.parallel.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(folder).absolute()) for folder in folders)},
        start_new_session=True,  # Ctrl-C is for this process, which then tells them
    )


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    for one in started:
        assert one.stdin is not None
        with suppress(OSError):  # it may be gone
            one.stdin.close()
    for one in started:
        assert one.stdout is not None
        if not one.stdout.closed:
            one.stdout.read()  # what nobody waited for: else it could not end
            one.stdout.close()
        one.wait()


def _begun(process: subprocess.Popen[bytes], job: Job) -> bool:
    """Whether it has understood its job."""
    assert process.stdin is not None and process.stdout is not None
    try:
        # RobustBench is imported in a way of its own, before its models are unpickled.
        pickle.dump(any(type(part).__module__.startswith("robustbench.") for part in job.net.modules()), process.stdin)
        pickle.dump(job, process.stdin)
        process.stdin.flush()
        return process.stdout.read(len(READY)) == READY
    except Exception:  # a model may hold anything, and pickle raises whatever that does; or the process is gone
        return False


def _outcome(process: subprocess.Popen[bytes]) -> ShareResult:
    assert process.stdout is not None
    try:
        found = pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError) as error:
        raise Interrupted(f"a worker process was ended (exit status {process.wait()})") from error
    if isinstance(found, Exception):
        raise found
    assert isinstance(found, ShareResult)
    return found
