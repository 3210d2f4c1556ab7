"""Progress for Python programs: of searches, trainings and analyses alike, as calls of one function."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from advbench.errors import UserError, shortened

if TYPE_CHECKING:
    from advbench.evaluator import Journal
    from advbench.trainer import Watch

Show = Callable[[str, float, float | None], None]
"""Called with (stage, done, total or None). It may raise to stop the work."""

_SECONDS = 0.5  # between two calls about one stage


class Reporter:
    """Calls `show` when a stage begins and twice a second; None reports nothing."""

    def __init__(self, show: Show | None) -> None:
        self._show = show
        self.stage, self._shown_at = "", 0.0

    def __call__(self, stage: str, done: float, total: float | None) -> None:
        self.measured(stage, lambda: (done, total))

    def measured(self, stage: str, measure: Callable[[], tuple[float, float | None]]) -> None:
        """Report what `measure` returns, which is called only if it is due."""
        now = time.monotonic()
        if self._show is not None and (stage != self.stage or now - self._shown_at >= _SECONDS):
            self.stage, self._shown_at = stage, now
            self._show(stage, *measure())


@contextmanager
def reporting(progress: bool | Show | None) -> Iterator[Reporter]:
    """Inside, a reporter to `progress`. True writes a line to stderr, over and over; None and False report nothing.

    Raises UserError for anything else that cannot be called.
    """
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise UserError(f"progress is {shortened(progress)}: give True, or a function of (stage, done, total)")
    report = Reporter(_line if progress is True else (progress or None))
    try:
        yield report
    finally:
        if progress is True and report.stage:
            sys.stderr.write("\n")


def journal_of(journal: Journal | str | Path | None, report: Reporter) -> Journal:
    """The journal, or one at that path, whose searches report their progress. A Journal reports as it was made to."""
    from advbench.engine.search import Search
    from advbench.evaluator import Journal, progress_of

    def tell(stage: str, search: Search) -> None:
        report.measured(stage, lambda: progress_of(search)[:2])

    if isinstance(journal, Journal):
        return journal
    return Journal(None if journal is None else Path(journal), progress=tell)


def watch_of(report: Reporter) -> Watch:
    """A listener of a training that reports its steps."""
    from advbench.trainer import StepDone, Watch

    class Reporting(Watch):
        def on_step(self, event: StepDone) -> None:
            done = (event.epoch - 1) * event.steps + event.step
            report("training", done, event.epochs * event.steps)

    return Reporting()


def _line(stage: str, done: float, total: float | None) -> None:
    share = f" {done / total:.0%}" if total else ""
    sys.stderr.write(f"\r{stage}{share}".ljust(60))
    sys.stderr.flush()
