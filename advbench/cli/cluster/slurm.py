"""`--on slurm:KEY=VALUE,...`: one array of Slurm jobs, a task each, through submitit.

At SIGUSR1, which Slurm sends before a time limit or a preemption, a task saves, is requeued, and goes on.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from advbench.cli.bar import Bar
from advbench.cli.cluster.tasks import SAVING_SECONDS, Cluster, check_device
from advbench.cli.console import Screen
from advbench.cli.stop import Stop
from advbench.errors import Interrupted, UserError, one_line, unknown
from advbench.files import check_writable, write_atomic

FOLDER = Path("slurm")  # of logs and of what submitit keeps, where the command is typed
EXECUTORS = ("slurm", "local", "debug")
NUMBERS = ("array", "cpus", "gpus", "mem_gb", "time")
OPTIONS = ("account", "constraint", "exclude", "gres", "nodelist", "partition", "qos", "reservation")  # of sbatch
TIME_LIMITS = 100  # that a task may use up
QUEUE_SECONDS = 15.0  # between two looks at the queue; a job that two of them miss has ended


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the jobs ask Slurm for: `time` in minutes, `cpus`, `gpus` and `mem_gb` of each, and `options` of sbatch.

    `array`: how many run at a time. `executor`: of submitit; `local`: processes of this machine in the place of Slurm's
    jobs; `debug`: this process. None: what Slurm gives.
    """

    executor: str = "slurm"
    time: int = 60
    gpus: int | None = None
    cpus: int | None = None
    mem_gb: int | None = None
    array: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def signal_seconds(self) -> int:
        """How long before a time limit the signal to save comes."""
        return min(120, 15 * self.time)

    @contextmanager
    def connected(self, device: str, stop: Stop) -> Iterator[Cluster]:
        """Get ready to submit. Raises UserError if submitit, Slurm or what a task needs is missing."""
        yield Slurm(self, device)


def parse(text: str) -> Place:
    """Parse `slurm[:KEY=VALUE,...]`. Raises UserError."""
    found: dict[str, Any] = {}
    options: dict[str, str] = {}
    words = re.split(",(?=[^,=]*=)", text.removeprefix("slurm").removeprefix(":"))  # a value may have commas
    for word in filter(None, words):
        name, _, value = word.partition("=")
        if name not in (*NUMBERS, *OPTIONS, "executor"):
            raise unknown("key of --on slurm", name, (*NUMBERS, *OPTIONS, "executor"))
        if name in found or name in options:
            raise UserError(f"--on {text!r}: {name} is given twice")
        if name in NUMBERS:
            if not (value.isascii() and value.isdecimal() and len(value) < 7 and (int(value) or name == "gpus")):
                raise UserError(f"--on {text!r}: {name} must be a whole number{', from 1' if name != 'gpus' else ''}")
            found[name] = int(value)
        elif name == "executor":
            if value not in EXECUTORS:
                raise unknown("executor of --on slurm", value, EXECUTORS)
            found[name] = value
        elif value.strip():
            options[name] = value
        else:
            raise UserError(f"--on {text!r}: {name} needs a value")
    return Place(options=options, **found)


class Slurm(Cluster):
    """Tasks as jobs that submitit submits. Raises UserError where it, Slurm or a GPU that is needed is missing."""

    def __init__(self, place: Place, device: str) -> None:
        submitit = _submitit()
        self.place = place
        self.device, parameters = resources(place, device)
        check_writable(FOLDER)
        self._seen: tuple[float, set[str] | None] = (-QUEUE_SECONDS, None)
        self._missed: dict[str, float] = {}
        if place.executor == "slurm":
            if missing := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
                raise UserError(
                    f"--on slurm: this machine has no {missing[0]}: type it where Slurm's jobs are submitted, or try "
                    "it here with --on slurm:executor=local"
                )
            self.executor = submitit.SlurmExecutor(FOLDER, max_num_timeout=TIME_LIMITS)
            self.executor.update_parameters(**parameters)
            self.about, self.screen = f"Slurm, {place.time} minutes at a time", Screen()
        elif place.executor == "local":
            self.executor = submitit.LocalExecutor(FOLDER, max_num_timeout=TIME_LIMITS)
            limits = {"timeout_min": place.time, "signal_delay_s": place.signal_seconds}
            self.executor.update_parameters(**limits, gpus_per_node=parameters.get("gpus_per_node", 0))
            self.about, self.screen = f"this machine in the place of Slurm{without(place, 'cpus', 'mem_gb')}", Screen()
            self.at_once = place.array or 1
        else:
            self.executor = submitit.DebugExecutor(FOLDER)
            left_out = without(place, "cpus", "mem_gb", "gpus", "array")
            self.about, self.at_once = f"this process in the place of Slurm{left_out}", 1

    def start(self, names: Sequence[str], calls: Sequence[partial[Any]], bar: Bar) -> Sequence[Any]:
        """Submit the tasks as one array, except those that an earlier command has submitted and that have not ended.

        Raises UserError where Slurm does not say which have: a second job would do the work of the first.
        """
        files = [FOLDER / f".{_key(call)}.job" for call in calls]
        jobs = [self._found(file) for file in files]
        new = [number for number, job in enumerate(jobs) if job is None]
        for number, job in zip(new, self._submitted([calls[number] for number in new]), strict=True):
            jobs[number] = job
            if self.place.executor == "slurm":
                write_atomic(files[number], job.job_id)
                self._seen = (-QUEUE_SECONDS, None)  # older than the job
        if self.place.executor != "debug":
            for name, job in zip(names, jobs, strict=True):
                bar.line(f"job {job.job_id}: {name}; {_log(job)}")
        return jobs

    def _found(self, file: Path) -> Any:
        """The job that `file` names, if it is in the queue."""
        if self.place.executor != "slurm" or not file.exists():
            return None
        job_id, queue = file.read_text(), self._queue()
        if queue is None:
            raise UserError(
                f"squeue does not say whether job {job_id} of an earlier command has ended: try again later"
            )
        return _submitit().SlurmJob(FOLDER, job_id) if job_id in queue else None

    def _submitted(self, calls: Sequence[partial[Any]]) -> Sequence[Any]:
        if not calls:
            return []
        from submitit.helpers import environment_variables

        # Ctrl-C on a terminal reaches the processes of the local executor, too, and must not end them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if self.place.executor == "local" else None
        quiet = redirect_stderr(io.StringIO())  # where submitit repeats what sbatch says
        try:
            with quiet, environment_variables(SUBMITIT_PREEMPT_SIGNAL="USR1"):
                jobs = self.executor.submit_array([Task(call) for call in calls])
        except Exception as error:
            reason = [line for line in str(error).splitlines() if line.strip()][-1:] or [one_line(error)]
            raise UserError(f"cannot submit: {reason[0].removeprefix('sbatch: error: ')}") from error
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)
        for job in jobs if self.place.executor != "debug" else ():
            job.paths.result_pickle.unlink(missing_ok=True)  # of an earlier job of this number
        return jobs

    def wait(self, running: Sequence[Any]) -> Sequence[Any]:
        if self.place.executor != "slurm":
            time.sleep(0.1)
            return [job for job in running if job.done()]
        time.sleep(0.5)
        files, queue = {*os.listdir(FOLDER)}, self._queue()
        return [job for job in running if job.paths.result_pickle.name in files or self._lost(job.job_id, queue)]

    def _queue(self) -> set[str] | None:
        """The ids of the user's jobs that wait or run, a few seconds old; None where Slurm does not answer."""
        at, found = self._seen
        if time.monotonic() - at >= QUEUE_SECONDS:
            command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
            ran = subprocess.run(command, capture_output=True, text=True)
            found = {*ran.stdout.split()} if ran.returncode == 0 else None
            self._seen = time.monotonic(), found
        return found

    def _lost(self, job_id: str, queue: set[str] | None) -> bool:
        """Whether a job without a result has left the queue: a shared file system may show results late."""
        if queue is None or job_id in queue:
            self._missed.pop(job_id, None)
            return False
        return time.monotonic() - self._missed.setdefault(job_id, time.monotonic()) > QUEUE_SECONDS

    def result(self, ended: Any) -> Any:
        if self.place.executor == "debug":
            answer = ended.result()
        elif not ended.paths.result_pickle.exists():
            raise UserError(f"job {ended.job_id} was ended from outside; {_log(ended)}")
        else:
            from submitit.core.utils import pickle_load

            outcome, answer = pickle_load(ended.paths.result_pickle)
            if outcome == "error":  # not of the task: the machine lacks a package, or too many time limits were used
                raise UserError(f"{answer.strip().splitlines()[-1]}; {_log(ended)}")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def leave(self, running: Sequence[Any]) -> str:
        """Slurm's jobs go on; the processes of this machine save and end."""
        if not running:
            return ""
        if self.place.executor == "slurm":
            arrays = " ".join(dict.fromkeys(job.job_id.partition("_")[0] for job in running))
            return f"; the others go on: scancel {arrays} would end them"
        for job in running:
            if not job.done():  # else its number may be that of another process by now
                os.kill(int(job.job_id), signal.SIGTERM)  # which it passes on
        until = time.monotonic() + SAVING_SECONDS
        while time.monotonic() < until and not all(job.done() for job in running):
            time.sleep(0.05)
        return ""


class Task:
    """What submitit calls: the answer of a task, or its error. Where it was told to save it does not return.

    After SIGUSR1 it is requeued by submitit. SIGTERM alone is `scancel`, or a preemption after which Slurm itself
    requeues.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self) -> Any:
        requeue: Any = signal.getsignal(signal.SIGUSR1)
        submitted = str(getattr(requeue, "__module__", "")).startswith("submitit")  # not so with the debug executor
        stop = Stop(patient=submitted)
        try:
            with stop:
                return self.call(stop=stop)
        except Interrupted as error:
            if not submitted:
                return error
            if signal.SIGUSR1 in stop.signals:
                requeue(signal.SIGUSR1, None)  # does not return
            if stop():
                sys.exit(3)
            return UserError(str(error))
        except UserError as error:
            return UserError(str(error))  # those of other classes may not fit into a pickle
        except Exception as error:
            traceback.print_exc()
            return UserError(f"{type(error).__name__}: {one_line(error)}")

    def checkpoint(self) -> Any:
        """What is submitted in the place of this task: itself, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def without(place: Place, *names: str) -> str:
    """What a stand-in for Slurm leaves out of that which `place` asks for, in words: `names` and all options."""
    asked = [*(name for name in names if getattr(place, name) is not None), *place.options]
    return f", without {', '.join(asked)}" if asked else ""


def resources(place: Place, device: str) -> tuple[str, dict[str, Any]]:
    """The device of each task, and the parameters of submitit for its job. Raises UserError."""
    check_device(device)
    cuda, gpus = device.startswith("cuda"), place.gpus
    if cuda and gpus == 0:
        raise UserError("--device cuda: --on asks for no GPU (gpus=0)")
    if cuda and gpus is None and "gres" not in place.options:
        gpus = 1
    setup = ["export SUBMITIT_PREEMPT_SIGNAL=USR1"]
    options = {**place.options, "requeue": True, "signal": f"USR1@{place.signal_seconds}"}
    found: dict[str, Any] = {"job_name": "advbench", "time": place.time, "additional_parameters": options}
    if gpus:
        found["gpus_per_node"] = gpus
    if place.mem_gb:
        found["mem"] = f"{place.mem_gb}GB"
    if place.array:
        found["array_parallelism"] = place.array
    if place.cpus:
        found |= {"cpus_per_task": place.cpus, "srun_args": [f"--cpus-per-task={place.cpus}"]}  # srun forgets sbatch's
        setup.append(f"export OMP_NUM_THREADS={place.cpus}")
    where = "cpu" if device == "cpu" or gpus == 0 else "cuda" if cuda or gpus else "auto"
    return where, {**found, "setup": setup}


def show_script(place: Place, names: Sequence[str], device: str, screen: Screen) -> None:
    """Print the script that the tasks would be submitted by. Raises UserError."""
    if place.executor != "slurm":
        raise UserError(f"--dry-run shows the script for Slurm, and executor={place.executor} has none: leave out --on")
    _submitit()
    from submitit.slurm.slurm import _make_sbatch_string

    folder, count = FOLDER.absolute(), len(names) if len(names) > 1 else None  # one task is no array
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    script = _make_sbatch_string(command, folder, map_count=count, **resources(place, device)[1])
    if screen.as_json:
        screen.json({"tasks": names, "script": script})
        return
    for number, name in enumerate(names):
        screen.note(f"task {number}: {name}")
    screen.text(script)
    screen.note("nothing was submitted")


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError("--on slurm needs a package: pip install 'advbench[scale]'") from error
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # it writes to stdout; in the jobs that is their log
    return submitit


def _log(job: Any) -> str:
    return f"log {Path(os.path.relpath(job.paths.stderr))}"


def _key(call: partial[Any]) -> str:
    """What names a task among all that are submitted from this folder."""
    function, _ = call.args
    return hashlib.sha256(repr((function.__name__, call.keywords["given"])).encode()).hexdigest()[:16]
