"""`--on ray[:ADDRESS]`: lists of runs or evaluations as Ray tasks. Ray brings the queue, the retries, the dashboard.

A task writes into its run folder, and into the leaderboard, as the command does on one machine; a task whose worker
is lost is started again, and goes on where it was saved. So all machines must see the same folders, under one name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advbench.cli.console import Bar
from advbench.cli.stop import Halted, Stop
from advbench.errors import UserError, unknown

RETRIES = 5  # of a task whose worker is lost


@dataclass(frozen=True)
class Place:
    """Which Ray cluster (None: one of this machine, started for the command), and what a task takes of it.

    `gpus` None: one where the cluster has any and `--device` does not say cpu.
    """

    address: str | None
    cpus: float = 1.0
    gpus: float | None = None


@dataclass(frozen=True)
class Job:
    """A task: what it is called in messages, and what its function is called with."""

    name: str
    given: Mapping[str, Any]


def parse_place(text: str) -> Place | None:
    """`local` (None) or `ray[:ADDRESS][,cpus=N][,gpus=N]`. Raises UserError."""
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
    """A connection to Ray."""

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
                raise UserError(f"a task asks for {asked:g} {kind}s, and the Ray cluster has {total.get(kind, 0.0):g}")
        self.device = "cuda" if self.gpus else "cpu"
        there = f"{total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
        self.about = f"Ray: {there}, {self.cpus:g} and {self.gpus:g} each"

    def run(
        self,
        function: Callable[..., Any],
        jobs: Sequence[Job],
        *,
        bar: Bar,
        stop: Stop,
        done: Callable[[Job, Any], None],
    ) -> None:
        """Call `function` with each job, elsewhere; `done` is told of each as it ends.

        Raises UserError when some failed, after all have ended; Halted when a signal came.
        """
        task = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(function)
        here = str(Path.cwd())
        running = {task.remote(here, **job.given): job for job in jobs}
        failed: list[str] = []
        while running:
            ended, _ = self.ray.wait(list(running), timeout=0.5)
            if stop():
                for waiting in running:
                    self.ray.cancel(waiting, force=True)
                raise Halted(f"stopped with {len(jobs) - len(running)} of {len(jobs)} tasks done", {})
            for ref in ended:
                job = running.pop(ref)
                try:
                    done(job, self.ray.get(ref))
                except self.ray.exceptions.RayError as error:
                    reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
                    failed.append(f"{job.name}: {reason}")
                    bar.line(f"failed: {failed[-1]}")
            count = len(jobs) - len(running)
            bar.update("tasks", lambda count=count: (count, len(jobs), f"{count} of {len(jobs)} done"))  # type: ignore[misc]
        if failed:
            raise UserError(
                f"{len(failed)} of {len(jobs)} tasks failed, the first {failed[0]}; --resume tries them again"
            )


@contextmanager
def connected(place: Place, device: str) -> Iterator[Cluster]:
    """Ray, or UserError in one line: no package, no cluster there, too little of what a task needs."""
    try:
        import ray
    except ImportError as error:
        raise UserError("--on ray needs a package: pip install 'advbench[scale]'") from error
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=place.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"cannot reach Ray at {place.address or 'this machine'}: {reason}") from error
    try:
        yield Cluster(ray, place, device)
    finally:
        if own:
            ray.shutdown()


def enter(here: str) -> None:
    """Work in the folder that the command was given in. Raises UserError where this machine does not have it."""
    try:
        os.chdir(here)
    except OSError as error:
        raise UserError(f"{here} is not on this machine: Ray needs a file system that all machines share") from error
