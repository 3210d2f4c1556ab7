"""Output: streams, terminals, colours, bars, warnings."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import pytest

from advbench.cli import console
from advbench.cli.bar import LiveBar, SparseBar
from advbench.cli.console import Screen, plain_table
from advbench.outlook import Outlook


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[Terminal]]:
    """`with terminal() as shown`: stdout and stderr are one terminal of 100 columns."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)

    @contextmanager
    def one() -> Iterator[Terminal]:
        shown = Terminal()
        with redirect_stdout(shown), redirect_stderr(shown):
            yield shown

    return one


def test_results_go_to_stdout_and_progress_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.say("result")
    screen.note("progress")
    screen.warn("careful")
    assert capsys.readouterr() == ("result\n", "progress\nwarning: careful\n")


def test_with_json_stdout_is_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(as_json=True)
    screen.say("chosen")
    screen.note("progress")
    screen.table(("a",), [("b",)])
    screen.json({"x": [1, None]})
    with screen.bar("work") as bar:
        bar.update("stage", lambda: Outlook("stage", 0.5))
        bar.line("epoch 1")
    out, err = capsys.readouterr()
    assert out == '{"x": [1, null]}\n' and err == "chosen\n"


def test_json_has_no_infinity() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Screen(as_json=True).json(float("inf"))


def test_plain_table_aligns_numbers_to_the_right() -> None:
    assert plain_table(("eps", "name"), [("0", "a"), ("8/255", "bc")], "title").splitlines() == [
        "title",
        "  eps  name",
        "    0  a",
        "8/255  bc",
    ]
    assert plain_table(("name", "summary"), []) == "name  summary"


def test_table_on_a_terminal(terminal: Any) -> None:
    with terminal() as stream:
        Screen().table(("eps", "accuracy"), [("[red]0[/red]", "98.1")], title="t")
    shown = stream.getvalue()
    assert "[red]0[/red]" in shown and "98.1" in shown and "\x1b[" in shown


def in_terminal(columns: int, code: str) -> list[str]:
    """The lines that a program shows on a real terminal of `columns` columns, without colours."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {"TERM": "xterm", "NO_COLOR": "1"}
    env = {name: value for name, value in {**os.environ, **plain}.items() if name not in ("COLUMNS", "LINES")}
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=child,
        stdout=child,
        stderr=child,
        env=env,
    )
    os.close(child)
    shown = b""
    with suppress(OSError):  # the end of a terminal
        while part := os.read(parent, 65536):
            shown += part
    os.close(parent)
    assert program.wait(60) == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n").splitlines()


LONG = """
from advbench.cli.console import Screen
Screen().say("note: " + "a flag tells much " * 9)
Screen().note("to go on: advbench train " + "--set a=b " * 12)
"""


def test_a_long_line_is_broken_between_words_and_a_command_is_not() -> None:
    lines = in_terminal(80, LONG)
    assert max(map(len, lines[:-1])) <= 80
    assert " ".join(map(str.strip, lines[:-1])) == ("note: " + "a flag tells much " * 9).strip()
    assert lines[-1].endswith("a=b ") and len(lines[-1]) > 80


WIDE = """
from advbench.cli.console import Screen
row = ("runs/" + "x" * 60 + "-s0", "a sentence of many words, " * 4, "12345", "0.5")
Screen().table(("name", "says", "a", "b"), [row])
Screen().table([f"value {i}" for i in range(14)], [["0.12345"] * 14], title="wide")
"""


def test_a_terminal_of_80_columns_folds_no_number() -> None:
    lines = in_terminal(80, WIDE)
    assert max(map(len, lines)) <= 80
    first = next(line for line in lines if line.startswith("runs/"))
    assert "..." in first and first.split()[0].endswith("-s0") and first.split()[-2:] == ["12345", "0.5"]
    wide = lines[lines.index("wide") :]
    heads = [line.split("   ") for line in wide if "value" in line]
    assert {cell.strip() for head in heads for cell in head} == {f"value {i}" for i in range(14)}
    assert all(head[0].strip() == "value 0" for head in heads) and len(heads) == 2
    assert sum(line.count("0.12345") for line in wide) == 15


def test_a_pipe_gets_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    exec(WIDE)
    out = capsys.readouterr().out
    assert "x" * 60 in out and out.count("0.12345") == 14 and "..." not in out


def test_no_color_means_no_escapes_in_results(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal() as stream:
        Screen().table(("eps", "accuracy"), [("0", "98.1")], title="t")
    assert "98.1" in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.say("a\x1b[2Jb")
    screen.table(("name",), [("c\x07d",)])
    assert capsys.readouterr().out == "a\\x1b[2Jb\nname\nc\\x07d\n"


@pytest.mark.parametrize("word", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    terminal: Any, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    with terminal() as stream:
        monkeypatch.setenv("TERM", word)
        with Screen().bar("model") as bar:
            assert isinstance(bar, SparseBar)
            bar.line("a line")
    assert stream.getvalue() == "a line\n"


def test_results_in_a_file_stay_there_while_a_bar_is_shown(terminal: Any) -> None:
    results = io.StringIO()
    with terminal() as stream, redirect_stdout(results), Screen().bar("model") as bar:
        assert isinstance(bar, LiveBar)
        bar.update("tasks", lambda: Outlook("tasks", 0.5, 3.0))
        Screen().say("a result")
        Screen().note("a note")
    assert results.getvalue() == "a result\n"
    assert "a result" not in stream.getvalue() and "a note" in stream.getvalue()


def test_text_that_the_stream_cannot_hold_is_escaped() -> None:
    held = io.BytesIO()
    stream = io.TextIOWrapper(held, encoding="ascii")
    with redirect_stdout(stream):
        Screen().say("r\u00e9sum\u00e9")
    assert held.getvalue() == b"r\\xe9sum\\xe9\n"


def test_own_warnings_are_one_line_and_others_are_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().ready():
        warnings.warn("not ours", stacklevel=1)
        warnings.warn_explicit("the cache\nis damaged", UserWarning, console.__file__, 1, module="advbench.data")
        warnings.warn_explicit("deprecated", DeprecationWarning, console.__file__, 1, module="advbench.data")
    assert capsys.readouterr() == ("", "warning: the cache is damaged\n")


def test_fetching_can_be_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    class Enough(Exception):
        pass

    def check() -> None:
        raise Enough

    with pytest.raises(Enough), Screen().fetching(check) as report:
        report(1, 10, "cifar10")


def test_one_json_value_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(as_json=True).json({"text": "two\nlines"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"text": "two\nlines"}
