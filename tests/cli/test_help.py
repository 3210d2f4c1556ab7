"""Help and listings are quick and load no torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from advbench import __version__
from advbench.cli import app
from advbench.cli.list import KINDS
from advbench.registry import entries

COMMANDS = ("train", "attack", "evaluate", "compare", "analyze", "leaderboard", "list")
_PRINT_HEAVY_MODULES = """
import sys
from advbench.cli import run
code = run(sys.argv[1:])
heavy = {"torch", "pandas", "scipy", "matplotlib", "numpy", "rich"} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


def program(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=check, timeout=60)


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["-h"], [], ["--version"], *([name, "-h"] for name in COMMANDS), ["list", "methods"]],
    ids=" ".join,
)
def test_loads_nothing_heavy(argv: list[str]) -> None:
    ran = program(sys.executable, "-c", _PRINT_HEAVY_MODULES, *argv)
    assert ran.stdout
    assert ran.stderr == "[]\n"


def test_list_models_loads_no_torch() -> None:
    ran = program(sys.executable, "-c", _PRINT_HEAVY_MODULES, "list", "models")
    assert "torch" not in ran.stderr


def test_importing_loads_no_torch() -> None:
    program(sys.executable, "-c", "import advbench, sys; advbench.evaluate; sys.exit('torch' in sys.modules)")


def test_help_is_quick() -> None:
    def seconds() -> float:
        """Processor time of one run, which other processes do not lengthen."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        program(sys.executable, "-m", "advbench", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_commands_and_their_program() -> None:
    help_text = program(str(Path(sys.executable).parent / "advbench"), "--help").stdout
    assert all(f"\n  {name} " in help_text for name in COMMANDS)
    assert [command.name for command in app.registered_commands] == list(COMMANDS)


def test_version(cli: Any) -> None:
    assert cli("--version").out == f"advbench {__version__}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_list_as_json(cli: Any, kind: str) -> None:
    ran = cli("list", kind, "--json")
    rows = json.loads(ran.out)
    assert ran.code == 0 and ran.err == ""
    assert all(isinstance(row["name"], str) and isinstance(row["summary"], str) for row in rows)
    if kind != "models":
        assert {row["name"] for row in rows} == set(entries({"datasets": "data"}.get(kind, kind)))


def test_list_names_every_kind_of_model(cli: Any) -> None:
    names = {row["name"] for row in json.loads(cli("list", "models", "--json").out)}
    assert {"resnet18", "small_cnn", "lenet5", "wrn-34-10", "pyautoattack:model_test"} <= names
    assert sum(name.startswith("robustbench:") for name in names) > 200


def test_list_filters_by_name_and_summary(cli: Any) -> None:
    rows = json.loads(cli("list", "attacks", "--filter", "CROCE", "--json").out)
    assert rows and all("croce" in f"{row['name']} {row['summary']}".lower() for row in rows)
    assert {"fab", "apgd-ce"} <= {row["name"] for row in rows} and "pgd" not in {row["name"] for row in rows}
    assert cli("list", "--filter", "no such thing").code == 0


def test_list_everything_is_one_screen_of_each(cli: Any) -> None:
    ran = cli("list")
    assert ran.code == 0
    assert all(f"{kind} (" in ran.out for kind in KINDS)
    assert "robustbench:cifar10" not in ran.out and "advbench list models" in ran.out
    assert "\x1b" not in ran.out
