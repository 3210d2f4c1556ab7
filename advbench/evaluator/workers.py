"""On a CPU, processes beside this one that attack shares of the images: they lose nothing to each other.

Two of them took 0.85 of the time of two threads that share the rows of each pass (AutoAttack on small MNIST nets). They
cost seconds to start, so short evaluations have none. Each is `python -m advbench.evaluator.worker`: it gets its job
on stdin and answers on stdout. Stdin that ends asks it to save and stop: so it does when this process is killed, too.
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

from advbench import ranks
from advbench.attacks.oracle import out_of_memory
from advbench.data.dataset import Dataset
from advbench.eps import CORRUPTIONS
from advbench.errors import Interrupted
from advbench.evaluator.bench import Bench
from advbench.evaluator.plan import Plan
from advbench.evaluator.room import room_for
from advbench.evaluator.share import Told

WORTH = 20.0  # seconds of forward passes, below which nobody is started
MOST = 8  # processes, each of which holds PyTorch, the model and its passes in memory
READY = b"ready"


@dataclass(frozen=True)
class Job:
    """A share of an evaluation: the images `data`, which are `rows` of all of them, and what is done to them."""

    net: nn.Module
    data: Dataset
    rows: NDArray[np.int64]
    run: Plan
    sizes: list[float]
    norm: str
    seed: int
    slots: int
    threads: int
    random: bool
    right: NDArray[np.bool_]  # which of the clean images the model gets right
    keep_points: bool
    path: Path | None  # of its journal
    asked: dict[str, Any]
    resume: bool


def how_many(net: nn.Module, data: Dataset, run: Plan, *, norm: str, slots: int, asked: int | None = None) -> int:
    """The processes, this one included: `asked`, or as many as are worth their start and have room in memory, one for
    each of PyTorch's threads and each time that the images fill the slots. One where they cannot be shared."""
    most = min(torch.get_num_threads(), round(len(data) / slots), MOST) if asked is None else min(asked, len(data))
    if most < 2 or data.device.type != "cpu" or ranks.world() > 1 or run.reference or norm == CORRUPTIONS:
        return 1
    if any(attack.reads == "features" for attack in run.attacks):  # the centres of classes are those of all images
        return 1
    if any(type(part).__module__ == "__main__" for part in (*net.modules(), *run.attacks)):  # another's main program
        return 1
    x, _ = data.batch(slice(0, slots))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a random model's numbers are its own
            once = net(x)
            began = time.perf_counter()
            again = net(x)
            a_row = (time.perf_counter() - began) / len(x)
    except RuntimeError as error:
        if out_of_memory(error):  # then there is none for more processes
            return 1
        raise
    if not torch.equal(once, again):  # random, and then all numbers come from one stream
        return 1
    if asked is not None:
        return most
    updates = sum(attack.updates(once.shape[1]) for attack in run.attacks)
    return min(most, room_for(net, x)) if a_row * len(data) * updates > WORTH else 1


def job(
    bench: Bench, run: Plan, sizes: list[float], rows: NDArray[np.int64], asked: dict[str, Any], *, resume: bool
) -> Job:
    """The job to attack `rows` of the bench's images; `asked`, with its shard, is for the journal."""
    number, of = asked["shard"]["rank"], asked["shard"]["of"]
    return Job(
        bench.net,
        bench.data.subset(torch.from_numpy(rows)),
        rows,
        run,
        sizes,
        bench.norm,
        bench.seed,
        bench.oracle.slots,
        threads=max(1, torch.get_num_threads() // of),
        random=bench.oracle.random,
        right=bench.correct[rows],
        keep_points=bench.keep_points,
        path=bench.journal.part(number, of),
        asked=asked,
        resume=resume,
    )


class Workers:
    """Those that have begun."""

    def __init__(self, found: list[Future[Told]]) -> None:
        self._found = found

    def check(self) -> None:
        """Raise what has stopped one of them: UserError, Interrupted where it was ended from outside, or
        RuntimeError."""
        for one in self._found:
            if one.done():
                one.result()

    def told(self, poll: Callable[[], None]) -> list[Told]:
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
        [sys.executable, "-P", "-m", "advbench.evaluator.worker"],
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


def _outcome(process: subprocess.Popen[bytes]) -> Told:
    assert process.stdout is not None
    try:
        found = pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError) as error:
        raise Interrupted(f"a worker process was ended (exit status {process.wait()})") from error
    if isinstance(found, Exception):
        raise found
    assert isinstance(found, Told)
    return found
