"""Worker processes on a CPU, each of which attacks a share of the images without waiting for the others.

Two processes took 0.85 of the time of two threads that share the rows of each pass (AutoAttack on small MNIST nets).
They take seconds to start, so short evaluations have none. Each runs `python -m advbench.evaluator.parallel.worker`,
reads its job from stdin and writes its result to stdout. When its stdin ends, because this process closed it or was
killed, the worker saves its journal and stops.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advbench.data.dataset import Dataset
from advbench.errors import Interrupted
from advbench.evaluator.forecast import Told
from advbench.evaluator.parallel.merge import ShareResult, share
from advbench.evaluator.plan import Plan
from advbench.evaluator.runner import Runner
from advbench.evaluator.settings import Settings

READY = b"ready"


@dataclass(frozen=True)
class Job:
    """The share of one worker: the images `data`, which are `rows` of all images, and the attacks on them."""

    net: nn.Module
    data: Dataset
    rows: NDArray[np.int64]
    run: Plan
    settings: Settings
    slots: int
    threads: int
    random: bool
    correct: NDArray[np.bool_]  # (m,) whether the model is right about each clean image
    journal: Path | None  # of the first process; the worker's own lies beside it
    question: dict[str, Any]
    number: int
    of: int
    resume: bool
    rejects: bool
    logits: NDArray[np.float32] | None  # with which a journal was saved, see `Journal`
    copy_error: float  # of all images, see `fp32_recheck`
    proved: NDArray[np.int16]  # (m,) as in Runner
    saved: dict[str, Any] | None  # the state of the journal of the worker before it, from which it goes on


def job(runner: Runner, run: Plan, settings: Settings, number: int, of: int, *, resume: bool) -> Job:
    """The job of process `number` of `of`."""
    rows = share(len(runner.data), number, of)
    return Job(
        runner.net,
        runner.data.subset(torch.from_numpy(rows)),
        rows,
        run,
        replace(settings, adversarials=()),  # which are judged once, after the attacks
        runner.slots,
        threads=max(1, torch.get_num_threads() // of),
        random=runner.oracle.random,
        correct=runner.correct[rows],
        journal=runner.journal.path,
        question=runner.journal.question,
        number=number,
        of=of,
        resume=resume,
        rejects=runner.oracle.rejects,
        logits=runner.journal.logits,
        copy_error=runner.copy_error,
        proved=runner.proved[rows],
        saved=runner.journal.workers.get(number),
    )


class Workers:
    """The worker processes, all of which have accepted their jobs."""

    def __init__(self, found: list[Future[ShareResult]], told: dict[int, Told]) -> None:
        self._found, self._told = found, told

    def told(self) -> list[Told]:
        """What each worker told last of its progress."""
        return list(self._told.values())

    def check(self) -> None:
        """Raise the error of any worker that has failed: UserError, RuntimeError, or Interrupted if it was killed."""
        for one in self._found:
            if one.done():
                one.result()

    def results(self, poll: Callable[[], None]) -> list[ShareResult]:
        """Wait for the results of all workers. `poll` is called meanwhile; what it or `check` raises ends the wait."""
        while not all(one.done() for one in self._found):
            poll()
            self.check()
            time.sleep(0.05)
        return [one.result() for one in self._found]


@contextmanager
def running(jobs: list[Job]) -> Iterator[Workers | None]:
    """Inside, a worker process runs each of `jobs`, and PyTorch uses as many threads here as in a worker.

    Yields None where the processes cannot be started or the model cannot be sent to them. On leaving, a worker that
    still runs stops at its next step, and is waited for.
    """
    threads = torch.get_num_threads()
    started: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            with suppress(OSError):  # the system allows no more processes
                started += [_start() for _ in jobs]
            if len(started) == len(jobs) and all(list(pool.map(_hand_over, started, jobs))):
                torch.set_num_threads(jobs[0].threads)
                told = dict[int, Told]()
                yield Workers([pool.submit(_result, one, told) for one in started], told)
            else:
                _stop(started)
                yield None
        finally:
            torch.set_num_threads(threads)
            _stop(started)


def _start() -> subprocess.Popen[bytes]:
    folders = [*sys.path, ""]  # the model's module may lie in the current folder
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "advbench.evaluator.parallel.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(folder).absolute()) for folder in folders)},
        start_new_session=True,  # Ctrl-C reaches only this process, which then stops the workers
    )


def _stop(started: list[subprocess.Popen[bytes]]) -> None:
    for one in started:
        assert one.stdin is not None
        with suppress(OSError):  # the worker may have ended
            one.stdin.close()
    for one in started:
        assert one.stdout is not None
        if not one.stdout.closed:
            one.stdout.read()  # drain an unread result: a full pipe would block the worker
            one.stdout.close()
        one.wait()


def _hand_over(process: subprocess.Popen[bytes], job: Job) -> bool:
    """Send `job` to a worker; whether the worker accepted it."""
    assert process.stdin is not None and process.stdout is not None
    try:
        # The worker must import RobustBench in a special way before it unpickles one of its models.
        pickle.dump("robustbench" in sys.modules, process.stdin)
        pickle.dump(job, process.stdin)
        process.stdin.flush()
        return process.stdout.read(len(READY)) == READY
    except Exception:  # pickling a model can raise anything, and the worker may have ended
        return False


def _result(process: subprocess.Popen[bytes], told: dict[int, Told]) -> ShareResult:
    """The result of a worker; what it tells before goes to `told`."""
    assert process.stdout is not None
    try:
        while isinstance(found := pickle.load(process.stdout), tuple):
            told[process.pid] = found
    except (EOFError, pickle.UnpicklingError) as error:
        raise Interrupted(f"a worker process was ended (exit status {process.wait()})") from error
    if isinstance(found, Exception):
        raise found
    assert isinstance(found, ShareResult)
    told[process.pid] = (0.0, *told.get(process.pid, (None, 0, 0))[1:])
    return found
