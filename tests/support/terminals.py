"""A command in a terminal of a given width: its screen after each output, as a terminal would show it."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CUT = re.compile(r"\x1b[^A-Za-z]*\Z")  # a sequence of which the rest is to come
_PIECES = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n\b\a])|([^\x1b\r\n\b\a]+)|(\x1b)")


@dataclass
class Terminal:
    """Lines of text of at most `columns`. A longer text wraps: `wrapped` holds the lines that were full before."""

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    wrapped: list[str] = field(default_factory=list)
    cursor_shown: bool = True
    coloured: bool = False

    def write(self, text: str) -> None:
        for numbers, command, control, plain, other in _PIECES.findall(text):
            if other:
                raise ValueError(f"unknown escape sequence in {text!r}")
            if command:
                self._control(numbers, command)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self._down()
            for char in plain:
                self._put(char)

    def _put(self, char: str) -> None:
        if self.column >= self.columns:
            self.wrapped.append(self.lines[self.row])
            self.column = 0
            self._down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _control(self, numbers: str, command: str) -> None:
        if command == "K":
            line = self.lines[self.row]
            self.lines[self.row] = "" if numbers == "2" else line[: self.column]
        elif command == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif command in "hl" and numbers == "?25":
            self.cursor_shown = command == "h"
        elif command == "m":
            self.coloured |= bool(re.search(r"(^|;)(3[0-8]|9\d)", numbers))
        else:
            raise ValueError(f"unknown control sequence {numbers}{command}")


@dataclass
class Shown:
    """What a command showed: its exit code, the terminal at the end, and the last line of the screen over time."""

    code: int
    terminal: Terminal
    frames: list[str]

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.terminal.lines)


def in_terminal(
    argv: Sequence[str],
    columns: int,
    *,
    folder: Path,
    on_frame: Callable[[Shown, int, Callable[[int], None]], None] = lambda shown, process, resize: None,
    program: Sequence[str] = ("-m", "advbench"),
    seconds: float = 120.0,
    **env: str,
) -> Shown:
    """Run `python PROGRAM ARGV` in a terminal of its own.

    After each output `on_frame` gets what was shown so far, the process id, and a function that sets the columns.
    """
    ours, theirs = pty.openpty()

    def resize(to: int) -> None:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, to, 0, 0))
        shown.terminal.columns = to

    shown = Shown(-1, Terminal(columns), [])
    resize(columns)
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "LC_ALL")}
    env = {**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", **env}
    process = subprocess.Popen(
        [sys.executable, *program, *argv],
        cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    ended, rest, decoder = time.monotonic() + seconds, "", codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while True:
            if not select.select([ours], [], [], max(0.0, ended - time.monotonic()))[0]:
                raise TimeoutError(f"still running after {seconds} s:\n{shown.text}")
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # the other side was closed
                break
            text = rest + decoder.decode(piece)
            cut = _CUT.search(text)
            text, rest = (text[: cut.start()], cut.group()) if cut else (text, "")
            shown.terminal.write(text)
            shown.frames.append(shown.terminal.lines[shown.terminal.row].rstrip())
            on_frame(shown, process.pid, resize)
    finally:
        if process.poll() is None:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        shown.code = process.wait()
        os.close(ours)
    return shown
