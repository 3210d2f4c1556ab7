"""Help and listings are quick and load no torch."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from advbench import __version__
from advbench.cli import app, options
from advbench.cli.help import GROUPS
from advbench.cli.list import KINDS
from advbench.registry import entries

COMMANDS = ("train", "attack", "evaluate", "compare", "analyze", "leaderboard", "list")
# What is off, or has no meaning, unless it is given.
WITHOUT_DEFAULT = [
    "--std",
    "--set",
    "--grid",
    "--config",
    "--again",
    "--adversarials",
    "--to",
    "--leaderboard",
    "--save-baseline",
    "--fail-if",
    "--plot",
    "--explain",
    "--why",
    "--log",
    "--filter",
]
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
    found = cli("list", "--filter", "rob").out
    assert "trained ones: advbench list models --filter rob)" in found and "(0)" not in found
    for words in (("list",), ("list", "attacks")):
        none = cli(*words, "--filter", "no such thing")
        assert none.code == 0 and none.out.startswith("no name or summary has 'no such thing' in it")


def test_list_everything_is_one_screen_of_each(cli: Any) -> None:
    ran = cli("list")
    assert ran.code == 0
    assert all(f"{kind} (" in ran.out for kind in KINDS)
    assert "robustbench:cifar10" not in ran.out and "advbench list models" in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines()[-2:])
    assert "\x1b" not in ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_of_a_command(name: str) -> None:
    """Groups in order, each flag in one of them, every default said, no line beyond 80 columns."""
    shown = program(sys.executable, "-m", "advbench", name, "--help").stdout
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80 and not any(line.endswith("[default:") and len(line) < 60 for line in lines)
    heads = [line.removesuffix(":") for line in lines if line and not line.startswith((" ", "Usage"))]
    assert heads == [group for group in ("Arguments", *GROUPS) if group in heads] and heads[-1] == "Running"
    assert re.search(r"\n\n  More: \S", shown)
    (command,) = (one for one in get_command(app).commands.values() if one.name == name)
    short = {one: other for option in command.params for one in option.opts[1:] for other in option.opts[:1]}
    assert short.items() <= options.SHORT.items()
    flags = [option for option in command.params if option.opts[0].startswith("-")]
    texts = re.split(r"\n  (?=-| {4}-)", shown)
    for option in flags:
        (text,) = (one for one in texts if re.match(rf" *(-\w, )?{option.opts[0]}\b(?!-)", one))
        off = option.is_flag or option.opts[0] in WITHOUT_DEFAULT
        assert ("[default: " in " ".join(text.split("\n\n")[0].split())) != off, text
        if isinstance(option.default, str | int | float) and not option.is_flag:
            assert f"[default: {option.default}]" in " ".join(text.split())


def test_short_flags_are_the_long_ones(cli: Any, run_folder: Path) -> None:
    ran = cli("evaluate", "-m", run_folder, "-a", "pgd", "-s", "steps=2", "-e0.1", "-d", "digits", "-n", "4", "-o", "o")
    assert ran.code == 0, ran.err
    (path,) = Path("o").rglob("*.json")
    command = json.loads(path.read_text())["environment"]["command"]
    assert command[2:8] == ["--model", str(run_folder), "--attack", "pgd", "--set", "steps=2"]
    assert command[8:] == ["--eps", "0.1", "--dataset", "digits", "-n", "4", "--out", "o"]
