"""Commands of advbench, several at a time."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from evidence import Tuning

from advbench.defaults.tuning import FILE, add, read
from advbench.files import write_atomic

FAILED = 2  # the exit code of a command that cannot be done; others are of one that was interrupted


class Workers:
    """Commands, `jobs` at a time, on one thread each.

    After one has failed the others go on, since it may be alone, such as a training that diverges. After one was
    interrupted no other starts. `code`: the exit code of that one, else FAILED if any failed, else 0. `failed`: the
    names of grids of which a run failed.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs, self.code, self.stopped = jobs, 0, False
        self.failed: set[str] = set()
        self.locks: defaultdict[str, Lock] = defaultdict(Lock)

    def alone(self, name: str) -> Lock:
        """A lock of this name, which only one task has at a time."""
        return self.locks[name]

    def each(self, tasks: Iterable[Callable[[], object]]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            for future in [pool.submit(task) for task in tasks]:
                future.result()

    def run(self, command: Sequence[str]) -> bool:
        """Whether the command was run and did not fail."""
        if self.stopped:
            return False
        print(f"$ advbench {shlex.join(command)}", flush=True)
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run([sys.executable, "-m", "advbench", *command], env=alone).returncode
        if code and not self.stopped:
            self.code = code
        if code == FAILED:
            print(f"failed, the others go on: advbench {shlex.join(command)}", flush=True)
        elif code and not self.stopped:
            self.stopped = True
            print("stopped: run the same command to continue", flush=True)
        return code == 0


def tune(at_work: Workers, tuning: Tuning) -> None:
    """Run what is left of the grid, beside what its file has; nothing where it failed before."""
    begun = tuning.folder / FILE
    if tuning.name in at_work.failed:
        return
    if tuning.file.is_file():
        begun.parent.mkdir(parents=True, exist_ok=True)
        add(begun, read(tuning.file))
    if at_work.run(tuning.command()):
        write_atomic(tuning.file, begun.read_text(encoding="utf-8"))
    else:
        at_work.failed.add(tuning.name)
