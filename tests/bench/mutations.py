"""Would the tests notice? A copy of advbench is changed in one place at a time, and a test must fail: `make mutations`.

    python tests/bench/mutations.py [--only WORD]...

The table is in mutants.py: flipped signs, missing projections, wrong directions, half-sized balls, wrong schedules and
budgets, hits that are none. Package and tests are copied to a temporary folder, where all tests of the table must pass;
then one mutation after the other is made there, and its test must fail. Exits 1 when a mutation survives. Stops when a
text to be changed is not there exactly once, when a mutant crashes in place of giving a wrong answer, and when a file
of attacks has no mutation at all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mutants import MUTANTS

ROOT = Path(__file__).parents[2]
SAID = "said.txt"
LIMIT = 300  # seconds: what takes longer does not end
CRASHES = ("AttributeError", "ImportError", "NameError", "SyntaxError", "TypeError", "UnboundLocalError")
# Tests run in processes forked from one that has imported these, which takes longer than most tests.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["torch", "torchvision", "scipy.stats", "scipy.optimize", "sklearn.linear_model", "pandas"]
)


@dataclass(frozen=True)
class Mutation:
    """In `file` the text `old` becomes `new`, and `test`, a function or one case of it, must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


def main() -> int:
    """Make the mutations that are asked for, and say what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="WORD", help="mutations with it in their name")
    given = parser.parse_args()
    found = table()
    check(found)
    chosen = [one for one in found if given.only is None or any(word in one.name for word in given.only)]
    if not chosen:
        raise SystemExit(f"no mutation has {' or '.join(given.only)} in its name")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name).resolve()
        for folder in ("advbench", "tests"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        tests = sorted({one.test for one in chosen})
        if failed := failure(copy, tests):
            raise SystemExit(f"without any mutation there fails {failed}")
        print(f"{'none':<28} passes {len(tests)} tests, {time.perf_counter() - began:.1f} s", flush=True)
        survived = [one.name for one in chosen if not caught(copy, one)]
    print(f"{len(chosen)} mutations: {len(chosen) - len(survived)} caught, {len(survived)} survived", end="")
    print(f", {time.perf_counter() - began:.0f} s", *survived, sep="\n")
    return 1 if survived else 0


def table() -> list[Mutation]:
    """All mutations of mutants.py."""
    return [
        Mutation(name, file, old, new, test)
        for file, tests in MUTANTS.items()
        for test, changes in tests.items()
        for name, old, new in changes
    ]


def check(table: list[Mutation]) -> None:
    """SystemExit where the table is not up to date."""
    wrong = [f"two mutations are called {name}" for name, n in Counter(one.name for one in table).items() if n > 1]
    for one in table:
        path = ROOT / one.file
        found = path.read_text().count(one.old) if path.exists() else 0
        if found != 1:
            wrong.append(f"{one.name}: {one.old!r} is {found} times in {one.file}, not once")
    for path in sorted((ROOT / "advbench/attacks").glob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if "\nENTRIES" in path.read_text() and file not in MUTANTS:
            wrong.append(f"{file} has attacks and no mutation: add one, such as a flipped sign, and its test")
    if wrong:
        raise SystemExit("mutants.py is not up to date:\n" + "\n".join(wrong))


def caught(copy: Path, one: Mutation) -> bool:
    """Make a mutation, run its test, take the mutation back."""
    began, path = time.perf_counter(), copy / one.file
    text = path.read_text()
    write(path, text.replace(one.old, one.new))
    failed = failure(copy, [one.test])
    write(path, text)
    test, _, reason = failed.partition(" - ")
    if reason.startswith(CRASHES):
        raise SystemExit(f"{one.name} crashes, which any test would notice: {failed}")
    what = f"caught by {test}" if failed else "SURVIVED"
    print(f"{one.name:<28} {what}, {time.perf_counter() - began:.1f} s", flush=True)
    return bool(failed)


def write(path: Path, text: str) -> None:
    """A module anew: compiled ones are told from stale ones by their size and the second, which is not enough here."""
    path.write_text(text)
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)


def failure(copy: Path, tests: list[str]) -> str:
    """The first of `tests` in the folder `copy` that fails, with the reason; "" when all pass."""
    process = FORKED.Process(target=run, args=(copy, tests))
    process.start()
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        return f"{tests[0]}, which did not end"
    said = (copy / SAID).read_text()
    failed = re.search(r"^FAILED (.*)$", said, re.MULTILINE)
    if process.exitcode == 1 and failed:
        return failed[1]
    if process.exitcode:  # no such test, an error before it, another package
        raise SystemExit(f"no verdict by {' '.join(tests)}\n{said[-3000:]}")
    return ""


def run(copy: Path, tests: list[str]) -> None:
    """pytest in `copy`, in a process of its own; what it says is in the file SAID there."""
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), COLUMNS="300")
    sys.path.insert(0, str(copy))
    with open(SAID, "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    import pytest

    import advbench

    if advbench.__file__ != str(copy / "advbench/__init__.py"):
        raise RuntimeError(f"advbench is {advbench.__file__}, not the copy's")
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


if __name__ == "__main__":
    sys.exit(main())
