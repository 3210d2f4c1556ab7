"""How many processes share the images, and the attacks by all of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from advbench import ranks, rng
from advbench.data.dataset import Dataset
from advbench.engine.kernels import out_of_memory
from advbench.errors import UserError
from advbench.evaluator.outcome import Outcome, attack_images
from advbench.evaluator.parallel import processes
from advbench.evaluator.parallel.memory import processes_that_fit
from advbench.evaluator.parallel.merge import ShareResult, agreed, merge, share
from advbench.evaluator.plan import Plan
from advbench.evaluator.runner import Runner
from advbench.evaluator.settings import Settings

MIN_SECONDS_TO_SHARE = 20.0  # of forward passes: a shorter evaluation is not worth the start of another process
MAX_PROCESSES = 8  # each holds PyTorch, the model and its activations in memory

Collect = Callable[[ShareResult], list[ShareResult]]
"""Takes this process's result and returns the results of all processes, in any order."""


def how_many(
    net: nn.Module,
    data: Dataset,
    run: Plan,
    *,
    slots: int,
    requested: int | None = None,
    saved: dict[str, Any] | None = None,
) -> int:
    """The number of processes that share the images, this one included.

    The first of these that applies:
    - that of the saved evaluation, whose question is `saved`;
    - that of torchrun;
    - 1 where the images cannot be shared;
    - `requested`, but at most one process for each image;
    - as many as are worth their start and fit into memory, at most one for each PyTorch thread and for each time that
      the images fill the slots.

    Raises UserError where the saved evaluation cannot be resumed with the processes that are here.
    """
    if saved is not None:
        count: int = saved.get("shard", {"of": 1})["of"]
        launched = ranks.world()
        if launched != count and (launched > 1 or (count > 1 and data.device.type != "cpu")):
            raise UserError(
                f"this evaluation was begun by {_of(count)}: resume with the same number of processes, or use --force"
            )
        return count
    if ranks.world() > 1:
        return ranks.world()
    if requested is None:
        most = min(torch.get_num_threads(), round(len(data) / slots), MAX_PROCESSES)
    else:
        most = min(requested, len(data))
    if most < 2 or data.device.type != "cpu" or not run.shareable:
        return 1
    if any(type(part).__module__ == "__main__" for part in (*net.modules(), *run.attacks)):  # not found by a worker
        return 1
    x, _ = data.batch(slice(0, slots))
    try:
        with torch.no_grad(), rng.kept():  # a random model's random numbers stay as they are
            once = net(x)
            began = time.perf_counter()
            again = net(x)
            a_row = (time.perf_counter() - began) / len(x)
    except RuntimeError as error:
        if out_of_memory(error):  # then there is no memory for more processes either
            return 1
        raise
    if not torch.equal(once, again):  # a random model draws all its numbers from one stream
        return 1
    if requested is not None:
        return most
    updates = sum(attack.updates(data.num_classes) for attack in run.attacks)
    return min(most, processes_that_fit(net, x)) if a_row * len(data) * updates > MIN_SECONDS_TO_SHARE else 1


def attack_all(runner: Runner, run: Plan, settings: Settings, count: int, *, resume: bool) -> Outcome:
    """The outcome of the attacks on all images, by this process and the others that share them, `count` in all."""
    if count == 1 or not run.shareable:  # unshareable: each process makes all the passes, which are few
        return agreed(lambda: attack_images(runner, run, settings.sizes))
    with launched() if ranks.world() > 1 else started(runner, run, settings, count, resume) as collect:
        if collect is None:
            if resume:
                warnings.warn("the other processes do not start: this one starts over alone", stacklevel=2)
            why, proved = runner.journal.why, runner.journal.proved
            runner.journal.begin(runner.journal.question, resume=False)
            runner.journal.why, runner.journal.copy_error, runner.journal.proved = why, runner.copy_error, proved
            runner.restrict_to(share(len(runner.data), 0, 1))  # in the attacks before, its images may have been shared
            return attack_images(runner, run, settings.sizes)
        rows = share(len(runner.data), ranks.rank(), count)
        runner.restrict_to(rows)
        mine = agreed(lambda: attack_images(runner, run, settings.sizes))
        return Outcome(merge(runner, collect(ShareResult.of(runner, mine.fates, rows))))


@contextmanager
def launched() -> Iterator[Collect]:
    """Share with the processes of torchrun, which all run this same code."""
    yield ranks.gather_objects


@contextmanager
def started(runner: Runner, run: Plan, settings: Settings, count: int, resume: bool) -> Iterator[Collect | None]:
    """Start a process for each of the other shares; None where the model cannot be sent to them."""
    jobs = [processes.job(runner, run, settings, number, count, resume=resume) for number in range(1, count)]
    with processes.running(jobs) as workers:
        if workers is None:
            yield None
            return
        runner.journal.check, runner.journal.forecast.others = workers.check, workers.told
        yield lambda mine: [mine, *workers.results(runner.journal.poll)]


def _of(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes (torchrun --nproc-per-node {count})"
