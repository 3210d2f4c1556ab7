"""The pages of docs/ whose snippets are one session run as they stand there, in an empty folder, from top to bottom."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^(?:### [^\n]*`(?P<file>[\w.]+\.py)`\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


def snippets(page: str) -> Iterator[tuple[str, str]]:
    """("file NAME", its text), ("python", a program) and ("command", a line), in the order of the page."""
    for block in BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
        if block["file"]:
            yield f"file {block['file']}", block["text"]
        elif block["kind"] == "python":
            yield "python", block["text"]
        else:
            yield from (("command", line) for line in block["text"].splitlines())


@pytest.fixture
def session(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command line in an empty folder, whose modules are forgotten at the end."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield cli
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(cli.folder)):
            del sys.modules[name]


def test_your_own(session: Any) -> None:
    ran = list(snippets("your-own.md"))
    assert {kind for kind, _ in ran} >= {"file mynet.py", "file forest.py", "python", "command"}
    for kind, text in ran:
        what, _, name = kind.partition(" ")
        if what == "file":
            (session.folder / name).write_text(text, encoding="utf-8")
        elif what == "python":
            sys.path.insert(0, str(session.folder))
            exec(compile(text, "your-own.md", "exec"), {"__name__": "__main__"})
        else:
            command, _, said = text.partition("  # ")
            program, *argv = shlex.split(command)
            if program == "python":
                subprocess.run([sys.executable, *argv], check=True, timeout=60)
                continue
            done = session(*argv)
            wanted = int(said.partition(":")[0].removeprefix("exit ")) if said else 0
            assert done.code == wanted, f"{text}\n{done.out}{done.err}"
