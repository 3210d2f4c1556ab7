"""README and docs say what works: their snippets run, and their command lines have the right flags."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from torch import nn

from advbench.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
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


def test_your_own(cli: Any) -> None:
    """The page is one session in an empty folder."""
    ran = list(snippets("your-own.md"))
    assert {kind for kind, _ in ran} >= {"file mynet.py", "file forest.py", "python", "command"}
    for kind, text in ran:
        what, _, name = kind.partition(" ")
        if what == "file":
            (cli.folder / name).write_text(text, encoding="utf-8")
        elif what == "python":
            sys.path.insert(0, str(cli.folder))
            exec(compile(text, "your-own.md", "exec"), {"__name__": "__main__"})
        else:
            command, _, said = text.partition("  # ")
            program, *argv = shlex.split(command)
            if program == "python":
                subprocess.run([sys.executable, *argv], check=True, timeout=60)
                continue
            done = cli(*argv)
            wanted = int(said.partition(":")[0].removeprefix("exit ")) if said else 0
            assert done.code == wanted, f"{text}\n{done.out}{done.err}"


def command_lines(text: str) -> list[str]:
    """The `advbench ...` and `python -m advbench ...` in the blocks of a page, without comments and what they print."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)
    found = re.findall(r"^(?:\$ )?(?:torchrun [^\n]*-m )?advbench ([^\n#]*)", "\n".join(blocks), re.M)
    return [line.strip() for line in found if "..." not in line]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/your-own.md", "docs/own-attacks.md"])
def test_command_lines_have_the_right_flags(page: str) -> None:
    lines = command_lines((ROOT / page).read_text(encoding="utf-8"))
    assert len(lines) > 1
    program: Any = typer.main.get_command(app)
    for line in lines:
        name, *argv = shlex.split(line)
        command = program.commands[name]
        with command.make_context(name, argv) as context:  # raises a UsageError
            assert context.params


def test_the_five_lines_of_the_readme(cli: Any) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    exec(text.replace('"cifar10"', '"digits"'), {"net": net})
    assert "accuracy" in cli.capture.readouterr().out
    kept = cli.folder.rglob("records/digits/linf/*.*")
    assert sorted(path.suffix for path in kept) == [".json", ".npz"]
