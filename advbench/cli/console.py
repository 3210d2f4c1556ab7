"""Output: results on stdout, progress and warnings on stderr. With `bar` the only file that imports rich.

A terminal gets tables with rules and live bars. Pipes and files get aligned plain text and a line of progress every 30
seconds. With `--json`, stdout gets JSON Lines and nothing else, and progress is not shown.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from advbench import ranks
from advbench.cli.bar import Bar, can_draw, drawn, written
from advbench.data import FETCHING
from advbench.escape import visible
from advbench.outlook import Steady

if TYPE_CHECKING:
    from rich.console import Console

    from advbench.data.dataset import Dataset

_PACKAGE = str(Path(__file__).parent.parent)


class Screen:
    """The output of one command.

    `as_json`: stdout gets JSON alone. `silent`: nothing is written; under torchrun only the first process writes.
    """

    def __init__(self, *, as_json: bool = False, silent: bool = False) -> None:
        self.as_json = as_json
        self.silent = silent or ranks.rank() > 0

    def say(self, text: str) -> None:
        """Write a line of the result to stdout, or with --json to stderr."""
        self._write(sys.stderr if self.as_json else sys.stdout, visible(text))

    def note(self, text: str) -> None:
        """Write a line about the progress to stderr, or nothing with --json."""
        if not self.as_json:
            self._write(sys.stderr, visible(text))

    def notes(self, data: Dataset) -> None:
        """Write what the user should know of the data to stderr, or nothing with --json."""
        for text in data.notes:
            self.note(f"{data.name}: {text}")

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""
        self._write(sys.stderr, visible(f"warning: {text}"))

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
            _console(sys.stdout).print(_rich_table(columns, cells, visible(title)))
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

    def _write(self, stream: TextIO, text: str) -> None:
        if not self.silent:
            encoding = getattr(stream, "encoding", None) or "utf-8"
            stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


def amount(done: int, total: int | None, what: str) -> str:
    """How much is done of a download, in MB, or of what else is counted."""
    if not done:
        return ""
    if what.startswith(FETCHING):
        return f"{done / 1e6:.1f}{f' of {total / 1e6:.1f}' if total else ''} MB"
    return f"{done:,}{f' of {total:,}' if total else ''}"


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    right = _numeric(rows, len(columns))

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ]
        return "  ".join(cells).rstrip()

    head = [title] if title else []
    return "\n".join([*head, line(columns), *map(line, rows)])


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title) if title else None, title_justify="left")
    for column, numeric in zip(columns, _numeric(rows, len(columns)), strict=True):
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _numeric(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """For each column, whether all its cells are numbers, fractions, intervals or percentages."""
    allowed = set("0123456789.,+-/%() e")
    return [bool(rows) and all(set(row[index]) <= allowed for row in rows) for index in range(columns)]


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    plain: Mapping[str, Any] = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    return Console(file=stream, markup=False, highlight=False, emoji=False, **plain)
