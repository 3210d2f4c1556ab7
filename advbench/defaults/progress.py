"""Progress for Python programs: of searches, trainings and analyses alike, as calls of one function."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from advbench.errors import UserError, shortened
from advbench.outlook import Outlook, Steady

if TYPE_CHECKING:
    from advbench.evaluator import Journal
    from advbench.trainer import Watch

Show = Callable[[str, float, float | None], None]
"""Called with (stage, done, total or None). It may raise to stop the work.

Of an evaluation, `done` is the share of the whole of it, and `total` is 1.
"""

_SECONDS = 0.5  # between two calls about one stage


class Reporter:
    """Calls `show` when a stage begins and twice a second, or with True writes lines; None reports nothing."""

    def __init__(self, show: Show | bool | None) -> None:
        self._show = show
        self.stage, self._shown_at, self._width = "", 0.0, 0
        self._paces: dict[str, Steady] = {}

    def __call__(self, stage: str, done: float, total: float | None) -> None:
        """Report `done` of `total` of a stage of an even pace."""
        if self._due(stage):
            if callable(self._show):
                self._show(stage, done, total)
            else:
                pace = self._paces.setdefault(stage, Steady())
                self._write(pace.outlook(stage, done / total if total else None))

    def outlook(self, stage: str, measure: Callable[[], Outlook]) -> None:
        """Report what `measure` returns, which is called only if it is due."""
        if self._due(stage):
            found = measure()
            if callable(self._show):
                self._show(found.what, found.share or 0.0, 1.0)
            else:
                self._write(found)

    def _due(self, stage: str) -> bool:
        now = time.monotonic()
        due = bool(self._show) and (stage != self.stage or now - self._shown_at >= _SECONDS)
        if due:
            self.stage, self._shown_at = stage, now
        return due

    def _write(self, found: Outlook) -> None:
        line = str(found)[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(line)


@contextmanager
def reporting(progress: bool | Show | None) -> Iterator[Reporter]:
    """Inside, a reporter to `progress`. True writes a line to stderr, over and over; None and False report nothing.

    Raises UserError for anything else that cannot be called.
    """
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise UserError(f"progress is {shortened(progress)}: give True, or a function of (stage, done, total)")
    report = Reporter(progress)
    try:
        yield report
    finally:
        if progress is True and report.stage:
            sys.stderr.write("\n")


def journal_of(journal: Journal | str | Path | None, report: Reporter) -> Journal:
    """The journal, or one at that path, whose searches report their progress. A Journal reports as it was made to."""
    from advbench.evaluator import Forecast, Journal, Series

    series = Series()

    def tell(forecast: Forecast) -> None:
        report.outlook(forecast.stage, lambda: series.outlook(forecast))

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
