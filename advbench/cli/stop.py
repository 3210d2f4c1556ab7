"""Signals: the first stops the work at its next step and saves it, the second ends the process at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from advbench import ranks
from advbench.cli.bar import can_draw
from advbench.errors import Interrupted
from advbench.signals import handle

RESUMABLE = ("train", "attack", "evaluate")  # the other commands start over


class Halted(Interrupted):
    """Interrupted; `missing` are options, besides --resume, that the command line to resume with needs."""

    def __init__(self, message: str, missing: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.missing = missing or {}


class Stop:
    """Inside `with Stop() as stop:`, signals are handled here, and `stop()` is whether one has come.

    `signals`: those that have come. `patient`: a second one does not end the process.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.signals: set[int] = set()
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return bool(self.signals)

    def check(self, *_: object) -> None:
        """Raise Interrupted after a signal; for work that has nothing to save."""
        if self.signals:
            raise Interrupted("stopped, and nothing was lost")

    def __enter__(self) -> Stop:
        self._before = handle(self._handle)
        return self

    def again(self) -> None:
        """Handle signals here again, after a library has taken them."""
        handle(self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.signals)
        self.signals.add(number)
        if again and self._patient:
            return
        if again:
            if can_draw(sys.stderr):
                os.write(2, b"\r\x1b[K\x1b[?25h")  # a live bar hides the cursor
            os._exit(128 + number)
        # In place of a live bar, or below the ^C of a terminal. Print is not safe in a handler.
        start = b"\r\x1b[K" if can_draw(sys.stderr) else b"\n" * sys.stderr.isatty()
        second = b"" if self._patient else b"; a second signal ends at once"
        os.write(2, start + b"stopping at the next step" + second + b"\n")


def resume_command(argv: Sequence[str], missing: Mapping[str, str]) -> str:
    """The command line that resumes `argv`, with the options `missing` added if they are not in `argv`."""
    words = [word for word in argv if word != "--force"]
    for option, value in missing.items():
        if not any(word == option or word.startswith(f"{option}=") for word in words):
            words += [option, value]
    if "--resume" not in words and words[:1] and words[0] in RESUMABLE and "--again" not in words:
        words.append("--resume")
    several = ranks.launched()[1] > 1
    start = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m"] if several else []
    return shlex.join([*start, "advbench", *words])
