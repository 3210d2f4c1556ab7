"""How many processes share the images, and the evaluation by all of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from advbench import ranks
from advbench.data.dataset import Dataset
from advbench.engine.kernels import out_of_memory
from advbench.errors import UserError
from advbench.evaluator.outcome import Outcome, attack_images
from advbench.evaluator.parallel import processes
from advbench.evaluator.parallel.memory import processes_that_fit
from advbench.evaluator.parallel.merge import ShareResult, agreed, merge, share
from advbench.evaluator.plan import Plan
from advbench.evaluator.precision import HEAVY, multiply_adds
from advbench.evaluator.runner import Runner
from advbench.evaluator.settings import Settings

WORTH = 20.0  # seconds of forward passes, below which no process is started
MOST = 8  # processes, each of which holds PyTorch, the model and its passes in memory

Collect = Callable[[ShareResult], list[ShareResult]]
"""Takes this process's result and returns those of all, in any order."""


def how_many(
    net: nn.Module,
    data: Dataset,
    run: Plan,
    *,
    slots: int,
    asked: int | None = None,
    begun: dict[str, Any] | None = None,
) -> int:
    """The processes, this one included: those that the journal `begun` was begun with, those of torchrun, `asked`, or
    as many as are worth their start and fit into memory, one for each of PyTorch's threads and each time that the
    images fill the slots. One where the images cannot be shared. Raises UserError where what was begun cannot be
    resumed here.
    """
    if begun is not None:
        count: int = begun.get("shard", {"of": 1})["of"]
        launched = ranks.world()
        if launched != count and (launched > 1 or (count > 1 and data.device.type != "cpu")):
            raise UserError(f"this evaluation was begun by {_of(count)}: resume it by as many, or use --force")
        return count
    if ranks.world() > 1:
        return ranks.world()
    most = min(torch.get_num_threads(), round(len(data) / slots), MOST) if asked is None else min(asked, len(data))
    if most < 2 or data.device.type != "cpu" or not run.shareable:
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
    return min(most, processes_that_fit(net, x)) if a_row * len(data) * updates > WORTH else 1


def attacked(runner: Runner, run: Plan, settings: Settings, count: int, *, resume: bool) -> Outcome:
    """What the attacks do to all images, by this process and those that share them with it, `count` in all."""
    if count == 1 or not run.shareable:  # then all processes make the few passes that there are
        with enough_threads(runner.net, runner.data):
            return agreed(lambda: attack_images(runner, run, settings.sizes))
    with launched() if ranks.world() > 1 else started(runner, run, settings, count, resume) as collect:
        if collect is None:
            if resume:
                warnings.warn("the other processes do not start: going on alone, from the beginning", stacklevel=2)
            runner.journal.begin(runner.journal.asked, resume=False)
            with enough_threads(runner.net, runner.data):
                return attack_images(runner, run, settings.sizes)
        rows = share(len(runner.data), ranks.rank(), count)
        runner.keep_to(rows)
        mine = agreed(lambda: attack_images(runner, run, settings.sizes))
        return Outcome(merge(runner, collect(ShareResult.of(runner, mine.fates, rows))))


@contextmanager
def enough_threads(net: nn.Module, data: Dataset) -> Iterator[None]:
    """Inside, a light network on a CPU has one of PyTorch's threads: these meet after every operation, which takes
    longer than one thread does alone."""
    threads = torch.get_num_threads()
    if data.device.type == "cpu" and multiply_adds(net, data) < HEAVY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def launched() -> Iterator[Collect]:
    """The processes of the launcher, which are all at the same point."""
    yield ranks.gather_objects


@contextmanager
def started(runner: Runner, run: Plan, settings: Settings, count: int, resume: bool) -> Iterator[Collect | None]:
    """Processes that are started for the other shares; None where the model cannot be handed to them."""
    jobs = [processes.job(runner, run, settings, number, count, resume=resume) for number in range(1, count)]
    with processes.at_work(jobs) as workers:
        if workers is None:
            yield None
            return
        runner.journal.check = workers.check
        yield lambda mine: [mine, *workers.results(runner.journal.poll)]


def _of(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes (torchrun --nproc-per-node {count})"
