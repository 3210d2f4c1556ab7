"""How far some work has come and how long it still takes, for terminals, logs and Python programs alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Outlook:
    """What runs now, the `share` of the whole work that is done (0 to 1), and an estimate of the seconds that are left.

    None: unknown. `more` are details, the most important first, of which a narrow terminal shows a part or none.
    """

    what: str
    share: float | None = None
    left: float | None = None
    more: str = ""

    def later(self, seconds: float) -> Outlook:
        """The outlook `seconds` after it was measured, if nothing else is heard. The share stays what was measured."""
        if self.left is None or seconds <= 0:
            return self
        return replace(self, left=max(self.left - seconds, min(self.left, 1.0)))

    def __str__(self) -> str:
        share = "" if self.share is None else f"{percent(self.share)} %"
        return ", ".join(part for part in (self.what, share, self.time_left, self.more) if part)

    @property
    def time_left(self) -> str:
        """`~3 min 20 s left`, or nothing where it is unknown."""
        return "" if self.left is None else f"~{duration(self.left)} left"


class Steady:
    """Work of an even pace, such as a download: the time left follows from the share and the time spent since then.

    `share` at the start is what an earlier process did.
    """

    def __init__(self, share: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began, self._share = clock, clock(), share

    def outlook(self, what: str, share: float | None, more: str = "") -> Outlook:
        """The outlook when `share` (0 to 1, None: unknown) is done."""
        if share is None or share <= self._share:
            return Outlook(what, share, None, more)
        spent = self._clock() - self._began
        return Outlook(what, share, spent * (1 - share) / (share - self._share), more)


def percent(share: float) -> int:
    """Whole percent, rounded down: 100 only when all is done."""
    return int(100 * share + 1e-9)


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
