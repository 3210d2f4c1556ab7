"""Output: results on stdout, progress and warnings on stderr. With `bar` the only file that imports rich.

A terminal gets tables with rules and live bars. Pipes and files get aligned plain text and a line of progress every 30
seconds. With `--json`, stdout gets JSON Lines and nothing else, and progress is not shown.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from advbench import ranks
from advbench.aligned import numeric_columns, plain_table
from advbench.cli.bar import Bar, can_draw, drawn, written
from advbench.data import FETCHING
from advbench.escape import visible, without_middle
from advbench.outlook import Steady

if TYPE_CHECKING:
    from rich.console import Console

    from advbench.data.dataset import Dataset

_PACKAGE = str(Path(__file__).parent.parent)
_GAP = 3  # spaces between two columns of a table on a terminal
_READABLE, _NARROWEST = 28, 12  # characters that a column of texts keeps while others give way, and in the end


class Screen:
    """The output of one command.

    `as_json`: stdout gets JSON alone. `silent`: nothing is written; under torchrun only the first process writes.
    """

    def __init__(self, *, as_json: bool = False, silent: bool = False) -> None:
        self.as_json = as_json
        self.silent = silent or ranks.rank() > 0

    def say(self, text: str) -> None:
        """Write a line of the result to stdout, or with --json to stderr."""
        self._line(sys.stderr if self.as_json else sys.stdout, text)

    def note(self, text: str) -> None:
        """Write a line about the progress to stderr, or nothing with --json."""
        if not self.as_json:
            self._line(sys.stderr, text)

    def notes(self, data: Dataset) -> None:
        """Write what the user should know of the data to stderr, or nothing with --json."""
        for text in data.notes:
            self.note(f"{data.name}: {text}")

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""
        self._line(sys.stderr, f"warning: {text}")

    def text(self, text: str) -> None:
        """Write lines made by the project itself (a recipe, a CSV) unescaped to stdout."""
        self._write(sys.stdout, text.removesuffix("\n"))

    def json(self, value: Any) -> None:
        """Write a JSON value as one line to stdout. Raises ValueError for infinities and NaN."""
        self._write(sys.stdout, json.dumps(value, allow_nan=False))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
        """Print a table, columns of numbers aligned to the right. With --json: nothing."""
        if self.as_json or self.silent:
            return
        cells = [[visible(cell) for cell in row] for row in rows]
        if sys.stdout.isatty():
            console = _console(sys.stdout)
            console.print(_rich_table(columns, cells, visible(title), console.width))
        else:
            self.text(plain_table(columns, cells, visible(title)))

    @contextmanager
    def ready(self) -> Iterator[Screen]:
        """Inside, each warning of this package is one line, once, all others hidden, unless `python -W` is used."""
        if sys.warnoptions:
            yield self
            return

        said = set[str]()

        def show(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **named: Any
        ) -> None:
            text = " ".join(str(message).split())
            if filename.startswith(_PACKAGE) and text not in said:
                said.add(text)
                self.warn(text)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning, module="advbench")
            warnings.showwarning = show
            yield self

    @contextmanager
    def bar(self, title: str) -> Iterator[Bar]:
        """A progress bar. `title` precedes the plain lines that replace it where stderr is no terminal."""
        if self.as_json or self.silent:
            yield Bar()
            return
        with drawn(_console(sys.stderr)) if can_draw(sys.stderr) else written(title, self.note) as bar:
            yield bar

    @contextmanager
    def fetching(self, check: Callable[[], None]) -> Iterator[Callable[[int, int | None, str], None]]:
        """A callback (bytes or items done, their total or None, what is done) that shows a download or the reading of
        files. It calls `check`, which may raise."""
        with self.bar("") as bar:
            paces: dict[str, Steady] = {}

            def report(done: int, total: int | None, what: str) -> None:
                check()
                pace = paces.setdefault(what, Steady())
                bar.update(what, lambda: pace.outlook(what, done / total if total else None, amount(done, total, what)))

            yield report

    def _line(self, stream: TextIO, text: str) -> None:
        text = visible(text)
        self._write(stream, _folded(text, shutil.get_terminal_size().columns) if stream.isatty() else text)

    def _write(self, stream: TextIO, text: str) -> None:
        if not self.silent:
            encoding = getattr(stream, "encoding", None) or "utf-8"
            stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


def _folded(text: str, width: int) -> str:
    """A line broken between words into lines of at most `width`; one with a command, which is to be copied, stays."""
    if "advbench " in text:
        return text
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def amount(done: int, total: int | None, what: str) -> str:
    """How much is done of a download, in MB, or of what else is counted."""
    if not done:
        return ""
    if what.startswith(FETCHING):
        return f"{done / 1e6:.1f}{f' of {total / 1e6:.1f}' if total else ''} MB"
    return f"{done:,}{f' of {total:,}' if total else ''}"


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, room: int) -> Any:
    """A table of at most `room` columns of the terminal, its columns in several parts where they are too many.

    Numbers are never cut. Sentences are wrapped, and names lose their middle. Each part begins with the columns that
    tell the rows apart.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    numeric = numeric_columns(rows, len(columns))
    tables: list[Any] = [Text(title)] if title else []
    for part in _parts(columns, rows, numeric, room):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for at, width in part.items():
            justify: Any = "right" if numeric[at] else "left"
            table.add_column(Text(columns[at]), justify=justify, width=width, overflow="fold")
        for row in rows:
            cells = {at: row[at] if " " in row[at] else _fit(row[at], width) for at, width in part.items()}
            table.add_row(*map(Text, cells.values()))
        tables += [table, Text()]
    return Group(*tables[:-1])


def _parts(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], room: int
) -> list[dict[int, int]]:
    """The parts of a table: the width of each of their columns, by its place."""
    from rich.cells import cell_len

    natural = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    sentences = [any(" " in row[at] for row in rows) for at in range(len(columns))]
    steps = [(at, least) for least in (_READABLE, _NARROWEST) for at, number in enumerate(numeric) if not number]
    steps.sort(key=lambda step: (-step[1], not sentences[step[0]], -natural[step[0]]))  # sentences give way first

    def widths(of: Sequence[int]) -> dict[int, int] | None:
        """The widths of a part of these columns; None where it has no room."""
        found = {at: natural[at] for at in of}
        over = sum(found.values()) + _GAP * (len(of) - 1) - room
        for at, least in steps:
            if at in found and over > 0:
                taken = min(over, max(0, found[at] - least))
                found[at], over = found[at] - taken, over - taken
        return found if over <= 0 or len(of) <= 2 else None

    count = next((k for k in range(1, len(columns)) if len({(*row[:k],) for row in rows}) == len(rows)), 1)
    shortest = [width if number else min(width, _NARROWEST) for width, number in zip(natural, numeric, strict=True)]
    keys = list(range(count)) if sum(shortest[:count]) + _GAP * count <= room // 2 else [0]
    parts, left = [], list(range(len(columns)))
    while left:
        first = [] if 0 in left else keys
        count = next(k for k in range(len(left), 0, -1) if k == 1 or widths([*first, *left[:k]]))
        parts.append(widths([*first, *left[:count]]) or {})
        left = left[count:]
    return parts


def _fit(text: str, width: int) -> str:
    """`text` in at most `width` characters."""
    return text if len(text) <= width else without_middle(text, width - 3, "...")


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    plain: Mapping[str, Any] = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    return Console(file=stream, markup=False, highlight=False, emoji=False, **plain)
