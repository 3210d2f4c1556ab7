"""What the pages on other libraries and on numbers call ours exists: commands, flags, settings and calls of Python."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
import typer

import advbench
from advbench.cli import app
from advbench.cli.settings import parse_settings
from advbench.evaluator.attack_set import resolve
from advbench.statistics import mcnemar_power, wilson

DOCS = Path(__file__).parents[2] / "docs"
NUMBERS = DOCS / "what-a-number-means.md"
PAGES = sorted((DOCS / "coming-from").glob("*.md"))
LIBRARIES = ("torchattacks", "foolbox", "art")


def ours(page: Path) -> Iterator[str]:
    """The code in the last column of the tables; in the index, the attacks in the first one."""
    for row in re.findall(r"^\| (.*) \|$", page.read_text(encoding="utf-8"), re.M):
        cells = row.split(" | ")
        yield from re.findall(r"`([^`]+)`", cells[-1])
        if page.stem == "index":
            yield from (f"--attack {code}" for code in re.findall(r"`([^`]+)`", cells[0]) if not code.startswith("--"))


def parse(line: str) -> dict[str, Any]:
    """The values of the flags of a command line. Raises UsageError."""
    name, *argv = shlex.split(line)
    program: Any = typer.main.get_command(app)
    with program.commands[name].make_context(name, argv) as context:
        return dict(context.params)


def check_attacks(flags: dict[str, Any]) -> None:
    """Raise UserError for attacks that do not exist, and for settings that they do not have."""
    names = [name for name in flags["attack"] or ["autoattack"] if ":" not in name]
    settings = parse_settings(flags["settings"] or [])
    if names and names != ["corruptions"]:
        resolve(names, settings, norm=flags["norm"] or "linf", classes=10)


def check_call(code: str) -> None:
    """Raise TypeError unless the function of advbench that `code` calls has its arguments."""
    (call,) = (
        one
        for one in ast.walk(ast.parse(code))
        if isinstance(one, ast.Call)
        and isinstance(one.func, ast.Attribute)
        and ast.unparse(one.func.value) == "advbench"
    )
    assert isinstance(call.func, ast.Attribute)
    given = {keyword.arg or "": None for keyword in call.keywords}
    inspect.signature(getattr(advbench, call.func.attr)).bind(*call.args, **given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_ours_exists(page: Path) -> None:
    checked = 0
    for code in ours(page):
        if code.startswith("advbench."):
            check_call(code)
        elif code.startswith("--"):
            check_attacks(parse(f"evaluate {code}"))
        elif code.startswith("advbench "):
            parse(code.removeprefix("advbench "))
        else:
            continue
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize("page", [*PAGES, NUMBERS], ids=lambda page: page.stem)
def test_command_lines_have_the_right_flags(page: Path) -> None:
    assert pages.check_flags(page) >= 2


def test_tables_of_the_page_on_numbers_hold_what_the_functions_give() -> None:
    text = NUMBERS.read_text(encoding="utf-8")
    number = r"([\d.,]+)"
    intervals = re.findall(rf"^\| {number} \| {number} – {number} \| {number} – {number} \|$", text, re.M)
    assert len(intervals) == 4
    for count, *ends in intervals:
        n = int(count.replace(",", ""))
        found = [100 * end for share in (0.5, 0.9) for end in wilson(round(share * n), n)]
        assert [float(end) for end in ends] == pytest.approx(found, abs=0.051)
    powers = re.findall(rf"^\| {number} \| {number} %" + rf" \| {number}" * 4 + r" \|$", text, re.M)
    assert len(powers) == 5
    for count, discordant, *shares in powers[:1]:  # the others take seconds
        n = int(count.replace(",", ""))
        found = [mcnemar_power(n, float(discordant) / 100, drop) for drop in (0, 0.01, 0.03, 0.05)]
        assert [float(share) for share in shares] == pytest.approx(found, abs=0.0051)


TO_TRY = [(page, block) for page in PAGES if page.stem != "index" for block in pages.blocks(page)]


@pytest.mark.filterwarnings("default")  # of the libraries
@pytest.mark.parametrize(("page", "block"), TO_TRY, ids=lambda one: one.stem if isinstance(one, Path) else one.kind)
def test_what_there_is_to_try_runs(cli: Any, run_folder: Path, page: Path, block: pages.Block) -> None:
    for name in LIBRARIES:
        if f"--attack {name}" in block.text and importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if block.kind == "python":
        exec(compile(block.text, str(page), "exec"), {"__name__": "__main__"})
        assert "images fell" in cli.capture.readouterr().out
        return
    for line in pages.lines(block.text):
        pages.run_line(f"{line} --probes off" if line.startswith("advbench evaluate") else line, cli)
