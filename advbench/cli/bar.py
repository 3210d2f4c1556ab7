"""Progress on stderr: a live bar on a terminal, else a plain line every 30 seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from advbench.escape import visible
from advbench.outlook import Outlook, duration, percent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_SPARSE_SECONDS = 30.0  # between two plain lines
_LIVE_SECONDS = 0.2  # between two measurements of a live bar, which follows the clock meanwhile
_MIN_WHAT, _MIN_MORE = 20, 8  # columns


class Bar:
    """Progress that is not shown. `live`: it is drawn on a terminal."""

    live = False

    def update(self, stage: str, measure: Callable[[], Outlook]) -> None:
        """Show the progress. `measure` is called when the `stage` is another one, or when it is time."""

    def line(self, text: str) -> None:
        """Print a line that stays above the bar."""


class _Measured(Bar):
    """Progress that is measured every `seconds`, and shown by a thread of its own, also during something long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stage: str | None = None
        self._outlook: Outlook | None = None
        self._began = self._measured = time.monotonic()

    def update(self, stage: str, measure: Callable[[], Outlook]) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._measured >= self._seconds:
            self._stage = stage
            self._outlook = measure()
            self._measured = time.monotonic()

    def now(self) -> Outlook | None:
        """What was measured last, and the time since then."""
        return None if self._outlook is None else self._outlook.later(time.monotonic() - self._measured)


class SparseBar(_Measured):
    """A plain line every 30 seconds."""

    def __init__(self, title: str, write: Callable[[str], None]) -> None:
        super().__init__(1.0)
        self._title, self._write = title, write
        self._shown, self._lock = self._began, threading.Lock()

    def update(self, stage: str, measure: Callable[[], Outlook]) -> None:
        super().update(stage, measure)
        self.show()

    def show(self) -> None:
        """Write a line if it is time."""
        with self._lock:
            now, outlook = time.monotonic(), self.now()
            if outlook is None or now - self._shown < _SPARSE_SECONDS:
                return
            self._shown = now
            title = f"{self._title}: " if self._title else ""
            spent = "" if outlook.left is not None else f", {duration(now - self._began)} so far"
            self._write(f"{title}{outlook}{spent}")

    def line(self, text: str) -> None:
        with self._lock:
            self._shown = time.monotonic()
            self._write(text)


class LiveBar(_Measured):
    """A live bar: what is done, bar, share and time left, then as much of the rest as the terminal has room for."""

    live = True

    def __init__(self, console: Console) -> None:
        super().__init__(_LIVE_SECONDS)
        self._console = console
        self._plain = not _is_utf8(console.file)

    def line(self, text: str) -> None:
        self._console.print(visible(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        outlook = self.now()
        if outlook is None:
            return
        spent = duration(time.monotonic() - self._began)
        # One column stays free: some terminals wrap as soon as the last one is filled.
        parts = laid_out(outlook, options.max_width - 1, spent=spent, plain=self._plain)
        yield Text.assemble(*parts, no_wrap=True, overflow="crop", end="")


@contextmanager
def drawn(console: Console) -> Iterator[LiveBar]:
    """Inside, the bar is drawn on the console's terminal, below all that is printed there."""
    from rich.live import Live

    bar = LiveBar(console)
    # Results that go elsewhere must not be printed on the terminal.
    with Live(bar, console=console, transient=True, refresh_per_second=5, redirect_stdout=sys.stdout.isatty()):
        yield bar


@contextmanager
def written(title: str, write: Callable[[str], None]) -> Iterator[SparseBar]:
    """Inside, lines of progress are written, also while the work is at something long."""
    bar, ended = SparseBar(title, write), threading.Event()

    def keep_on() -> None:
        while not ended.wait(1.0):
            bar.show()

    thread = threading.Thread(target=keep_on, daemon=True)
    thread.start()
    try:
        yield bar
    finally:
        ended.set()
        thread.join()


def laid_out(outlook: Outlook, width: int, *, spent: str, plain: bool) -> list[tuple[str, str]]:
    """The line of a live bar, at most `width` columns, as texts and their styles. `plain`: in ASCII.

    What is done is cut where the bar, the share and the time would have no room; the bar is left out next; the details
    have what is left.
    """
    from rich.cells import cell_len

    share = "" if outlook.share is None else f" {percent(outlook.share):3d} %"
    left = f"  {outlook.time_left or f'{spent} so far'}"
    length = 0 if outlook.share is None else max(8, min(width // 8, 24))
    room = width - len(share) - len(left)
    if length and room - length - 1 < _MIN_WHAT:
        length = 0
    what = _cut(visible(outlook.what), room - (length + 1 if length else 0), plain)
    parts = [(what, "")]
    if length and outlook.share is not None:
        filled = round(length * outlook.share)
        full, empty = ("#", "-") if plain else ("█", "░")  # distinct without colours too
        parts += [(" ", ""), (full * filled, "bar.complete"), (empty * (length - filled), "bar.back")]
    parts += [(share, "progress.percentage"), (left, "progress.remaining")]
    room = width - sum(cell_len(text) for text, _ in parts) - 2
    if outlook.more and room >= _MIN_MORE:
        parts.append((f"  {_cut(visible(outlook.more), room, plain)}", ""))
    return [(text, style) for text, style in parts if text] if room >= -2 else [(_cut(what, width, plain), "")]


def _cut(text: str, width: int, plain: bool) -> str:
    """`text` in at most `width` columns, with an ellipsis where it is cut; in ASCII if `plain`."""
    from rich.cells import cell_len, set_cell_size

    text = text.encode("ascii", "backslashreplace").decode() if plain else text
    if cell_len(text) <= width:
        return text
    dots = "..." if plain else "…"
    return f"{set_cell_size(text, max(0, width - len(dots))).rstrip()}{dots}"[: max(0, width)]


def can_draw(stream: TextIO) -> bool:
    """Whether a bar can be drawn on `stream`: a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _is_utf8(stream: Any) -> bool:
    """Whether `stream` is shown as UTF-8: by its encoding, and by the locale, which Python may have overruled."""
    named = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "C")
    if not os.environ.get("LC_ALL") and os.environ.get("LC_CTYPE") == "C.UTF-8":
        named = os.environ.get("LANG") or "C"  # Python sets LC_CTYPE itself where the locale is C
    utf8 = "utf-8" in named.lower() or "utf8" in named.lower()
    return utf8 and "utf" in (getattr(stream, "encoding", None) or "utf-8").lower()
