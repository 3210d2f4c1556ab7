"""Markdown pages as sessions: what a page tells its reader to do, done from top to bottom in an empty folder.

- A block whose last line before it ends with a file name in backticks is that file.
- Any other ```python block is a program. ``` and ```bash blocks are command lines, one a line (`\\` continues one);
  `# exit 1: ...` behind a line is the exit code it must have, and a line of exit code 3 gets a Ctrl-C at work.
- A ```text block is printed by what ran since the last one: its lines come in this order, with other digits.
- A record's id in a ```text block stands for the one that was printed in its place, in the commands that follow too.
- `<!-- not run: WHY -->` before a block: only the flags of its `advbench` lines are checked.
- Blocks of other languages are for reading.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from advbench.cli import app

ROOT = Path(__file__).parents[2]
PROGRAMS = """
advbench() { python -m advbench "$@"; }
torchrun() { PYTHON_EXEC=python python -m torch.distributed.run "$@"; }
"""
BLOCK = re.compile(r"^(?P<skip><!-- not run: [^\n]+ -->\n)?```(?P<language>[^\s`]*)\n(?P<text>.*?)^```$", re.M | re.S)
FILE = re.compile(r"`([\w./-]+\.\w+)`:?$")
ADVBENCH = re.compile(r"^[ \t]*(?:[$] |- run: |torchrun .*-m |srun .*)*advbench[ ](\w[^\n#|>&]*)", re.M)
ID = re.compile(r"\b[0-9a-f]{16}\b")
NUMBER = re.compile(rf"{ID.pattern}|[-+<>]?[-+]?\d[\d.,]*(e-?\d+)?")


@dataclass(frozen=True)
class Block:
    """`kind`: "file", "python", "commands", "printed" or "read". `file`: the name of a file. `runs`: not only shown."""

    kind: str
    text: str
    file: str = ""
    runs: bool = True


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    kinds = {"python": "python", "": "commands", "bash": "commands", "text": "printed"}
    for found in BLOCK.finditer(text):
        before = text[: found.start()].rstrip().rpartition("\n")[2]
        named = FILE.search(before)
        kind = "file" if named else kinds.get(found["language"], "read")
        yield Block(kind, found["text"], named[1] if named else "", not found["skip"])


def lines(text: str) -> list[str]:
    """The command lines of a block or script, each in one line."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def check_flags(page: Path) -> int:
    """Let the parser read every `advbench` line of a page, and return how many there are. Raises its UsageError."""
    program: Any = typer.main.get_command(app)
    wholes = ("\n".join(lines(one.text)) for one in blocks(page) if one.kind != "printed")
    found = [line for whole in wholes for line in ADVBENCH.findall(whole) if "..." not in line]
    for line in found:
        name, *argv = shlex.split(line)
        command = program.commands[name]
        with command.make_context(name, argv) as context:
            assert context.params
    return len(found)


def run(page: Path, cli: Any) -> None:
    """Do what the page says in the folder of `cli`, and look for what it prints. Raises AssertionError."""
    sys.path.insert(0, str(cli.folder))
    printed, ids = "", dict[str, str]()
    for block in blocks(page):
        if block.kind == "printed":
            ids |= find_lines(block.text, printed)
            printed = ""
        elif block.kind == "file":
            path = cli.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.kind == "python" and block.runs:
            cli.capture.readouterr()
            exec(compile(block.text, page.name, "exec"), {"__name__": "__main__"})
            printed += cli.capture.readouterr().out
        elif block.kind == "commands" and block.runs:
            for line in lines(block.text):
                for shown, real in ids.items():
                    line = line.replace(shown, real)
                printed += run_line(line, cli)


def run_line(line: str, cli: Any) -> str:
    """What a command line prints. Raises AssertionError for another exit code than it says."""
    command, _, said = line.partition("  # ")
    wanted = int(said.removeprefix("exit ")[:1]) if said.startswith("exit ") else 0
    program, *argv = shlex.split(command)
    if program == "advbench" and not set(argv) & set("|>;"):
        with ctrl_c(cli.folder) if wanted == 3 else nullcontext():
            done = cli(*argv)
        code, printed = done.code, done.out + done.err
    elif program == "python":
        cli.capture.readouterr()
        runpy.run_path(argv[0], run_name="__main__")
        code, printed = 0, cli.capture.readouterr().out
    else:
        code, printed = run_outside(PROGRAMS + command, cli.folder)
    assert code == wanted, f"{command}: exit {code}\n{printed}"
    return printed


def run_outside(script: str, folder: Path, path: str = "", **variables: str) -> tuple[int, str]:
    """The exit code of a script of bash and what it prints. `python` and what a page calls are those of this test."""
    before = f"{path}:{Path(sys.executable).parent}:{os.environ['PATH']}".lstrip(":")
    own = {"PATH": before, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    ran = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**os.environ, **own},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    return ran.returncode, ran.stdout


@contextmanager
def ctrl_c(folder: Path) -> Iterator[None]:
    """Send this process SIGINT once the command has saved something to resume from."""
    ended, before = threading.Event(), saved(folder)

    def press() -> None:
        while not ended.wait(0.01):
            if saved(folder) - before:
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def saved(folder: Path) -> set[Path]:
    """What a command can resume from."""
    return {*folder.rglob("train_state/*"), *folder.rglob("records/.*.journal")}


def find_lines(wanted: str, printed: str) -> dict[str, str]:
    """Look for the lines of `wanted` in `printed`, in their order; digits, widths and lines of dots are free.

    Returns the record's id that was printed for each one in `wanted`.
    """
    left, ids = iter(printed.splitlines()), {}
    for line in wanted.splitlines():
        if line.strip() not in ("", "..."):
            found = next((one for one in left if shape(one) == shape(line)), None)
            assert found is not None, f"not printed in this order: {line}\n{printed}"
            ids |= dict(zip(ID.findall(line), ID.findall(found), strict=True))
    return ids


def shape(line: str) -> str:
    return " ".join(NUMBER.sub("#", line).split())
