"""Sections of a measurement that has so many seconds, and the table to which each row is appended at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from advbench import ranks
from advbench.errors import one_line

Left = Callable[[], float]
"""The seconds that are left; below 0 once they are over."""
Found = tuple[str, str, str]
"""What was measured, the value with its unit, and a remark."""
Write = Callable[[str, str, str, str], None]
HEAD = ("section", "measured", "value", "remark")


@dataclass(frozen=True)
class Job:
    """One measurement: `run` yields rows as soon as it has them."""

    name: str
    run: Callable[[Left], Iterator[Found]]


@dataclass(frozen=True)
class Section:
    """Jobs, the most informative first, and the seconds they have of a budget of `sum(seconds)`."""

    name: str
    seconds: float
    jobs: Sequence[Job]


class Cut(Exception):
    """A job has used up the seconds of its section. The message says how far it came."""


def measure(sections: Sequence[Section], budget: float, clock: Callable[[], float], write: Write) -> None:
    """Run the sections in `budget` seconds, each in its share; the last one has all that the others left.

    A section that is over its share starts no more jobs and says which it left out. A job that fails is a row, and the
    next one follows.
    """
    began, planned = clock(), sum(section.seconds for section in sections)
    for number, section in enumerate(sections):
        until = began + budget
        if number < len(sections) - 1:
            until = min(until, clock() + budget * section.seconds / planned)

        def left(until: float = until) -> float:
            return until - clock()

        for place, job in enumerate(section.jobs):
            if not ranks.first(lambda left=left: left() > 0):  # type: ignore[misc]
                others = "; ".join(one.name for one in section.jobs[place:])
                write(section.name, "cut", "", f"out of time, not measured: {others}")
                break
            try:
                for found in job.run(left):
                    write(section.name, *found)
            except Cut as cut:
                write(section.name, job.name, "cut", str(cut))
            except Exception as error:  # whatever it is, the other measurements are worth having
                write(section.name, job.name, "failed", f"{type(error).__name__}: {one_line(error)}")


class Table:
    """A Markdown table at the end of `path`, begun under the line `about`; `title` heads a new file.

    Each row is on the disk before `row` returns, so that a run that is killed leaves a table that is whole. The other
    processes of a shared measurement write nothing.
    """

    def __init__(self, path: Path | None, title: str, about: str) -> None:
        self.path = path if ranks.rank() == 0 else None
        begun = self.path is not None and self.path.exists()
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._append(f"{'' if begun else title}\n{about}\n\n{_line(HEAD)}{_line(['---'] * len(HEAD))}")

    def row(self, *cells: str) -> None:
        """Append a row, and print it."""
        self._append(_line([cell.replace("|", "/").replace("\n", " ") for cell in cells]))

    def _append(self, text: str) -> None:
        if ranks.rank() == 0:
            print(text, end="", flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
