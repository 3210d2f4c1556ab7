"""Attacks of other libraries and of one's own on the command line, as a user types it, and the examples of the docs."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import peer_stand_ins as peers
import pytest

from advbench.record import load_record

BLOCKS = list(pages.blocks(Path(__file__).parents[2] / "docs" / "how-to" / "attack.md"))
FILES = {block.file: block.text for block in BLOCKS if block.kind == "file"}
COMMANDS = [line for block in BLOCKS if block.kind == "commands" and not block.runs for line in pages.lines(block.text)]
LIBRARIES = ("torchattacks", "foolbox", "art", "adv_lib")
EVALUATE = ("evaluate", "--eps", "0,0.1", "-n", "40", "--json", "--attack")
OWN = """
import torch
from dataclasses import dataclass
from advbench.attacks.pgd import PGD as Ours

def pgd(model, eps):
    import torchattacks
    return torchattacks.PGD(model, eps, eps / 4)

def loop(model, x, y, eps):
    from peer_stand_ins import loop
    return loop(model, x, y, eps)

def draws(model, x, y, eps):
    return (x + eps * torch.randn_like(x).sign()).clamp(0, 1)

@dataclass(frozen=True, kw_only=True)
class Mine(Ours):
    steps: int = 3
"""


@pytest.fixture
def own(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command line in a folder with own_attacks.py, where the libraries are stand-ins."""
    peers.install(monkeypatch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_attacks", raising=False)
    (cli.folder / "own_attacks.py").write_text(OWN)
    yield cli
    sys.modules.pop("own_attacks", None)


def record(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)  # type: ignore[no-any-return]


def test_on_one_board_beside_ours_in_tables_of_their_own(own: Any, run_folder: Path) -> None:
    names = ["own_attacks:loop", "own_attacks:pgd", "foolbox:LinfPGD", "art:ProjectedGradientDescent", "pgd"]
    found = [record(own(*EVALUATE, name, "--leaderboard", "board", "--name", "mine")) for name in names]
    assert len({tuple(point["robust"] for point in one["curve"]) for one in found[:4]}) == 1
    page = (own.folder / "board" / "digits-linf.md").read_text()
    assert all(page.count(f"{name} on") >= 1 for name in names)
    assert all(one["forwards"] > 0 for one in found)


def test_what_an_attack_prints_is_no_result(own: Any, run_folder: Path) -> None:
    ran = own(*EVALUATE, "torchattacks:PGD")
    assert record(ran)["attack"][0]["name"] == "torchattacks:PGD"
    assert "an attack that prints" in ran.err


@pytest.mark.parametrize("name", ["torchattacks:PGD", "own_attacks:pgd", "own_attacks:draws", "own_attacks:Mine"])
def test_a_record_is_repeated(own: Any, run_folder: Path, name: str) -> None:
    found = record(own(*EVALUATE, name))
    assert "not-repeatable" not in {flag["name"] for flag in found["flags"]}
    again = record(own("evaluate", "--again", found["path"], "--attack", name, "--json"))
    assert again["same"] and again["moved"] == 0
    refused = own("evaluate", "--again", found["path"])
    assert refused.is_one_clear_line and "--attack" in refused.err


@pytest.mark.parametrize("name", ["pgd", "loop", "Mine"])
def test_a_change_of_its_code_is_another_question(own: Any, run_folder: Path, name: str) -> None:
    first = record(own(*EVALUATE, f"own_attacks:{name}"))
    (own.folder / "own_attacks.py").write_text(OWN + "\n")
    del sys.modules["own_attacks"]  # as in another process
    other = record(own(*EVALUATE, f"own_attacks:{name}"))
    assert first["question"] != other["question"] and first["curve"] == other["curve"]
    assert load_record(Path(first["path"]))[0].attack[0].settings != other["attack"][0]["settings"]
    refused = own("evaluate", "--again", first["path"], "--attack", f"own_attacks:{name}")
    assert refused.code == 2 and f"the code of own_attacks:{name} has changed since" in refused.err


def test_set_is_for_our_own_attacks(own: Any, run_folder: Path) -> None:
    ran = own(*EVALUATE, "torchattacks:PGD", "--set", "steps=3")
    assert ran.code == 2 and "torchattacks:PGD has no setting 'steps'" in ran.err.splitlines()[-1]


def test_a_library_that_is_not_installed_is_one_line(own: Any, run_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    for name, why in (("torchattacks:PGD", "cannot load attack"), ("own_attacks:pgd", "own_attacks:pgd failed")):
        ran = own(*EVALUATE, name)
        assert ran.code == 2 and why in ran.err.splitlines()[-1] and "torchattacks" in ran.err


@pytest.mark.filterwarnings("default")  # of the libraries
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(cli: Any, run_folder: Path, monkeypatch: Any, command: str) -> None:
    name = command.partition("--attack ")[2].split()[0]
    module = name.partition(":")[0]
    needs = [one for one in LIBRARIES if re.search(rf"\b{one}\b", FILES.get(f"{module}.py", module))]
    for one in needs:
        if importlib.util.find_spec(one) is None:
            pytest.skip(f"{one} is not installed")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for file, source in FILES.items():
        (cli.folder / file).write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, file.removesuffix(".py"), raising=False)
    found = record(cli(*shlex.split(command)[1:], "-n", "20", "--json"))
    assert found["attack"][0]["settings"]["set"] == name
    assert found["curve"][-1]["robust"] < found["curve"][0]["robust"]
    sys.modules.pop(module if f"{module}.py" in FILES else "", None)


def test_the_page_has_every_form() -> None:
    assert sorted(FILES) == ["attack_class.py", "attack_function.py", "attack_peers.py"]
    assert len(COMMANDS) >= 6 and all("--attack " in command for command in COMMANDS)
