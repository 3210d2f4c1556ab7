"""`--on ray[:ADDRESS]`: several runs or evaluations as Ray tasks. Ray brings the queue, the retries and a dashboard.

A task writes to the same run folder and leaderboard as the command on one machine would. A task whose worker is lost is
started again and resumes from what was saved. All machines must therefore see the same folders under the same paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from advbench.cli.bar import Bar
from advbench.cli.stop import Halted, Stop
from advbench.errors import Interrupted, UserError, unknown
from advbench.outlook import Steady

RETRIES = 5  # of a task, if its worker is lost
SAVING_SECONDS = 30.0  # that tasks have after a signal to save


@dataclass(frozen=True)
class Place:
    """A Ray cluster, and the CPUs and GPUs that each task takes.

    `address` None: a cluster on this machine, started for the command. `gpus` None: one GPU if the cluster has any and
    `--device` is not cpu.
    """

    address: str | None
    cpus: float = 1.0
    gpus: float | None = None


@dataclass(frozen=True)
class Job:
    """A task: its name in messages and the keyword arguments of its function."""

    name: str
    given: Mapping[str, Any]


def parse_place(text: str) -> Place | None:
    """Parse `ray[:ADDRESS][,cpus=N][,gpus=N]`; None for `local`. Raises UserError."""
    if text == "local":
        return None
    where, *amounts = text.split(",")
    kind, _, address = where.partition(":")
    if kind != "ray":
        raise unknown("place", text, ("local", "ray", "ray:ADDRESS"))
    found: dict[str, float] = {}
    for amount in amounts:
        name, _, number = amount.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = -1.0
        if name not in ("cpus", "gpus") or not 0 <= found[name] < float("inf"):
            raise UserError(f"--on {text!r}: write ray[:ADDRESS][,cpus=N][,gpus=N], such as ray:auto,gpus=0.5")
    return Place(address or None, **found)


class Cluster:
    """A connection to Ray. Raises UserError if the cluster has less than one task needs."""

    def __init__(self, ray: Any, place: Place, device: str) -> None:
        self.ray = ray
        total = ray.cluster_resources()
        self.cpus, self.gpus = place.cpus, place.gpus
        if self.gpus is None:
            self.gpus = 0.0 if device == "cpu" else min(1.0, total.get("GPU", 0.0))
        if device.startswith("cuda") and not self.gpus:
            raise UserError("--device cuda: the Ray cluster has no GPU, or --on asks for none (gpus=0)")
        for kind, asked in (("CPU", self.cpus), ("GPU", self.gpus)):
            if asked > total.get(kind, 0.0):
                raise UserError(f"a task needs {asked:g} {kind}s, but the Ray cluster has {total.get(kind, 0.0):g}")
        self.device = "cuda" if self.gpus else "cpu"
        resources = f"{total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
        self.about = f"Ray: {resources}; {self.cpus:g} and {self.gpus:g} per task"

    def run(
        self,
        function: Callable[..., Any],
        jobs: Sequence[Job],
        *,
        bar: Bar,
        stop: Stop,
        done: Callable[[Job, Any], None],
    ) -> None:
        """Call `function(folder, **job.given)` for each job as a Ray task, and `done(job, result)` as each ends.

        Raises UserError once all have ended if some failed, and Halted, when the tasks have saved, after a signal.
        """
        task = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(function)
        here = str(Path.cwd())
        running = {task.remote(here, **job.given): job for job in jobs}
        failed: list[str] = []
        pace = Steady()
        while running:
            ended, _ = self.ray.wait(list(running), timeout=0.5)
            if stop():
                self._halt(list(running))
                raise Halted(f"stopped with {len(jobs) - len(running)} of {len(jobs)} tasks done")
            for ref in ended:
                job = running.pop(ref)
                try:
                    done(job, self.ray.get(ref))
                except self.ray.exceptions.RayError as error:
                    if isinstance(getattr(error, "cause", None), Interrupted):  # a signal to the worker alone
                        self._halt(list(running))
                        raise Halted(f"the task {job.name} was stopped and has saved") from error
                    reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
                    failed.append(f"{job.name}: {reason}")
                    bar.line(f"failed: {failed[-1]}")
            count = len(jobs) - len(running)
            what = f"{count} of {len(jobs)} tasks done"
            bar.update(what, partial(pace.outlook, what, count / len(jobs)))
        if failed:
            raise UserError(
                f"{len(failed)} of {len(jobs)} tasks failed; the first: {failed[0]}; --resume tries them again"
            )

    def _halt(self, running: list[Any]) -> None:
        """Let tasks save and end: Ray interrupts them as Ctrl-C would. Those that take too long are killed."""
        for force in (False, True):
            for ref in running:
                self.ray.cancel(ref, force=force)
            if running:
                _, running = self.ray.wait(running, num_returns=len(running), timeout=SAVING_SECONDS)


@contextmanager
def connected(place: Place, device: str, stop: Stop) -> Iterator[Cluster]:
    """Connect to Ray. Raises UserError if the package, the cluster or what a task needs is missing."""
    try:
        import ray
    except ImportError as error:
        raise UserError("--on ray needs a package: pip install 'advbench[scale]'") from error
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=place.address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"cannot reach Ray at {place.address or 'this machine'}: {reason}") from error
        stop.again()  # Ray has put a handler of its own on SIGTERM, which ends the process in the middle
    try:
        yield Cluster(ray, place, device)
    finally:
        if own:
            ray.shutdown()


def enter(folder: str) -> None:
    """Change to the folder in which the command was typed. Raises UserError if this machine does not have it."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"{folder} is not on this machine: with Ray, all machines must share a file system") from error
