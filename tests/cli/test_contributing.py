"""The examples of CONTRIBUTING.md run as they stand there, in an empty folder."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from advbench.registry import find

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^### [^\n]*`(\w+\.py)`\n```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^advbench (.*)$", TEXT, re.MULTILINE)


@pytest.fixture
def folder(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command line in a folder with the two files and nothing else."""
    assert sorted(FILES) == ["my_attack.py", "my_method.py"]
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, source in FILES.items():
        (cli.folder / name).write_text(source, encoding="utf-8")
        sys.modules.pop(name.removesuffix(".py"), None)
    yield cli
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_commands_train_and_evaluate(folder: Any) -> None:
    train, evaluate = (shlex.split(command) for command in COMMANDS)
    ran = folder(*train, "--set", "train_n=256", "--set", "method.beta=1")
    assert ran.code == 0, ran.err
    (metrics,) = folder.folder.glob("runs/*/metrics.jsonl")
    assert json.loads(metrics.read_text())["terms"].keys() == {"ce", "pairing"}
    ran = folder(*evaluate, "--json")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert record["model"]["trained"]["method"] == "my_method:logit-pairing"
    assert record["attack"][0]["name"] == "random-search" and record["curve"][0]["n"] == 40
    assert record["curve"][1]["robust"] < record["curve"][0]["robust"]


@pytest.mark.parametrize("bound", [False, True])
def test_the_attack_meets_the_closed_form(folder: Any, cases: Any, bound: bool) -> None:
    case = cases["two-sided"](bound)
    attack = find("attacks", "my_attack:random-search").create()
    assert case.strike(attack, "linf", 1.001 * case.distance("linf")).fell.all()
    assert not case.strike(attack, "linf", 0.999 * case.distance("linf")).fell.any()
