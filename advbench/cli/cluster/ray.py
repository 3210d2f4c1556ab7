"""`--on ray[:ADDRESS]`: Ray brings the queue, the retries and a dashboard.

A task whose worker is lost is started again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from advbench.cli.bar import Bar
from advbench.cli.cluster.tasks import SAVING_SECONDS, Cluster, check_device, perform
from advbench.cli.stop import Stop
from advbench.errors import Interrupted, UserError, one_line

RETRIES = 5  # of a task, if its worker is lost


@dataclass(frozen=True)
class Place:
    """A Ray cluster, and the CPUs and GPUs that each task takes.

    `address` None: a cluster on this machine, started for the command. `gpus` None: one GPU if the cluster has any and
    `--device` is not cpu.
    """

    address: str | None
    cpus: float = 1.0
    gpus: float | None = None

    @contextmanager
    def connected(self, device: str, stop: Stop) -> Iterator[Cluster]:
        """Connect to Ray. Raises UserError if the package, the cluster or what a task needs is missing."""
        try:
            import ray
        except ImportError as error:
            raise UserError("--on ray needs a package: pip install 'advbench[scale]'") from error
        check_device(device)
        own = not ray.is_initialized()
        if own:
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                raise UserError(f"cannot reach Ray at {self.address or 'this machine'}: {reason}") from error
            stop.again()  # Ray has put a handler of its own on SIGTERM, which ends the process in the middle
        try:
            yield Ray(ray, self, device)
        finally:
            if own:
                ray.shutdown()


def parse(text: str) -> Place:
    """Parse `ray[:ADDRESS][,cpus=N][,gpus=N]`. Raises UserError."""
    where, *amounts = text.split(",")
    address = where.partition(":")[2]
    found: dict[str, float] = {}
    for amount in amounts:
        name, _, number = amount.partition("=")
        if name in found:
            raise UserError(f"--on {text!r}: {name} is given twice")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = -1.0
        if name not in ("cpus", "gpus") or not 0 <= found[name] < float("inf"):
            raise UserError(f"--on {text!r}: write ray[:ADDRESS][,cpus=N][,gpus=N], such as ray:auto,gpus=0.5")
    return Place(address or None, **found)


class Ray(Cluster):
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

    def start(self, names: Sequence[str], calls: Sequence[partial[Any]], bar: Bar) -> Sequence[Any]:
        task = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(perform)
        return [task.remote(*call.args, **call.keywords) for call in calls]

    def wait(self, running: Sequence[Any]) -> Sequence[Any]:
        ended, _ = self.ray.wait(running, timeout=0.5)
        return ended  # type: ignore[no-any-return]

    def result(self, ended: Any) -> Any:
        try:
            return self.ray.get(ended)
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, Interrupted):
                raise cause from error
            raise UserError((str(cause or error).strip().splitlines() or [one_line(cause or error)])[-1]) from error

    def leave(self, running: Sequence[Any]) -> str:
        """Ray interrupts the tasks as Ctrl-C would. Those that take too long are killed."""
        for force in (False, True):
            for ref in running:
                self.ray.cancel(ref, force=force)
            if running:
                _, running = self.ray.wait(running, num_returns=len(running), timeout=SAVING_SECONDS)
        return ""
