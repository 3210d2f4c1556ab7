"""What all clusters share: tasks, the wait for them, and what is said of those that fail."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from advbench import consent
from advbench.cli.bar import Bar
from advbench.cli.console import Screen
from advbench.cli.stop import Halted, Stop
from advbench.consent import Consent
from advbench.errors import Interrupted, UserError
from advbench.outlook import Steady

SAVING_SECONDS = 30.0  # that tasks have after a signal to save


@dataclass(frozen=True)
class Job:
    """A task: its name in messages and the keyword arguments of its function.

    `given` tells it from other tasks, also from those of later commands; `more`, further arguments, does not.
    """

    name: str
    given: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)


def perform(
    function: Callable[..., Any],
    folder: str,
    *,
    given: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
    allowed: Consent,
    screen: Screen,
    stop: Stop | None = None,
) -> Any:
    """Do a task where it runs: the answer of `function(**given, **more, stop=..., screen=...)` in `folder`.

    `folder` is where the command was typed. Raises UserError if this machine does not have it.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"{folder} is not on this machine: all machines of a cluster must share it") from error
    with nullcontext(stop) if stop else Stop() as stop, allowed.given():
        return function(**given, **(more or {}), stop=stop, screen=screen)


def check_device(device: str) -> None:
    """Raise UserError for a device that no machine has."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise UserError(f"unknown device {device!r}: choose from auto, cpu, cuda, cuda:N")


class Cluster(ABC):
    """A connection to where tasks run.

    `about`: what it is, in words; `device`: of each task; `at_once`: how many are started at a time, None for all;
    `screen`: what tasks write to.
    """

    about: str
    device: str
    at_once: int | None = None
    screen = Screen(silent=True)

    @abstractmethod
    def start(self, names: Sequence[str], calls: Sequence[partial[Any]], bar: Bar) -> Sequence[Any]:
        """Start tasks, and return a handle for each. `calls`: `perform` with its arguments. Raises UserError."""

    @abstractmethod
    def wait(self, running: Sequence[Any]) -> Sequence[Any]:
        """Those of the `running` tasks that have ended, after about half a second."""

    @abstractmethod
    def result(self, ended: Any) -> Any:
        """The answer of a task. Raises UserError where it has failed, and Interrupted where it was stopped."""

    @abstractmethod
    def leave(self, running: Sequence[Any]) -> str:
        """Let the tasks save and end; or, where they go on without the command, say how to end them."""

    def run(
        self,
        function: Callable[..., Any],
        jobs: Sequence[Job],
        *,
        bar: Bar,
        stop: Stop,
        done: Callable[[Job, Any], None],
        started: Callable[[Job], None] | None = None,
    ) -> None:
        """Call `function` for each job as a task, see `perform`, and `done(job, answer)` as each ends.

        `started(job)` is called once the cluster has accepted its task.

        Raises UserError once all have ended if some failed, and Halted after a signal.
        """
        here, allowed = str(Path.cwd()), consent.current()

        def call(job: Job) -> partial[Any]:
            return partial(perform, function, here, given=job.given, more=job.more, allowed=allowed, screen=self.screen)

        def over() -> str:
            return f"{count - len(waiting) - len(running)} of {count} tasks done"

        waiting, running, failed = list(jobs), dict[Any, Job](), list[str]()
        pace, count = Steady(), len(jobs)
        while waiting or running:
            some = waiting[: None if self.at_once is None else self.at_once - len(running)]
            if some:
                handles = self.start([job.name for job in some], [call(job) for job in some], bar)
                running |= zip(handles, some, strict=True)
                del waiting[: len(some)]
                if started is not None:
                    for job in some:
                        started(job)
            ended = self.wait(list(running))
            if stop():
                raise Halted(f"stopped with {over()}{self.leave(list(running))}")
            for one in ended:
                job = running.pop(one)
                try:
                    answer = self.result(one)
                except Interrupted as error:  # a signal to the task alone
                    raise Halted(f"the task {job.name} was stopped and has saved{self.leave(list(running))}") from error
                except UserError as error:
                    failed.append(f"{job.name}: {error}")
                    bar.line(f"failed: {failed[-1]}")
                else:
                    done(job, answer)
            share = 1 - (len(waiting) + len(running)) / count
            bar.update(over(), partial(pace.outlook, over(), share))
        if failed:
            raise UserError(f"{len(failed)} of {count} tasks failed; the first: {failed[0]}; --resume tries them again")
