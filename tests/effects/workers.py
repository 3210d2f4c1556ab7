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

from advbench.defaults.tuning import FILE
from advbench.files import write_atomic


class Workers:
    """Commands, `jobs` at a time; after one has failed no other starts. `code`: the exit code of that one, else 0."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.code = jobs, 0
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
        if self.code:
            return False
        print(f"$ advbench {shlex.join(command)}", flush=True)
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run([sys.executable, "-m", "advbench", *command], env=alone).returncode
        if code and not self.code:
            self.code = code
            print("stopped: run the same command to continue")
        return code == 0


def tune(at_work: Workers, tuning: Tuning) -> None:
    if at_work.run(tuning.command()):
        tuning.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(tuning.file, (tuning.folder / FILE).read_text(encoding="utf-8"))
