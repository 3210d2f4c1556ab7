"""The folder is the registry: what every entry must say, and that no entry needs another."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import proofs
import pytest

import advbench
from advbench.errors import UserError
from advbench.registry import entries, find

PACKAGE = Path(advbench.__file__).parent
FOLDERS = ("methods", "attacks", "models", "data", "analyses")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_entry_has_a_maker_and_a_summary(folder: str) -> None:
    assert entries(folder)
    for name, entry in entries(folder).items():
        place = f"ENTRIES[{name!r}] of {proofs.file_of(entry)}"
        assert entry.summary and "\n" not in entry.summary, f"{place} needs a 'summary' of one line"
        assert callable(entry.load()), f"'make' in {place} must name a class or a function, not {entry.make!r}"


@pytest.mark.parametrize("name", entries("attacks"))
def test_the_proof_of_an_attack_is_what_the_tests_read(name: str) -> None:
    """A misspelt part or key would change nothing."""
    entry = entries("attacks")[name]
    place = f"ENTRIES[{name!r}]['proof'] of {proofs.file_of(entry)}"
    unknown = sorted(set(entry.proof) - set(proofs.PARTS))
    assert not unknown, f"{place} has {', '.join(unknown)}: its parts are {', '.join(proofs.PARTS)}"
    keys = {*proofs.NORMS, *(f"{norm} {side}" for norm in proofs.NORMS for side in proofs.SIDES.values())}
    for part in ("needs", "nearest"):
        unknown = sorted(set(entry.proof.get(part, {})) - keys)
        assert not unknown, f"{place}[{part!r}] has {', '.join(unknown)}: write a norm, or a norm with free or bound"
    for part in ("quick", "settings"):
        proofs.made(name, part)  # UserError for a setting that it does not have


@pytest.mark.parametrize("folder", ["methods", "attacks"])
def test_no_entry_imports_another(folder: str) -> None:
    own = {entry.module for entry in entries(folder).values()}
    # Sets and wrappers are made of members: they are the one kind of entry that names others.
    sets = {entry.module for entry in entries(folder).values() if "members" in entry.about}
    for module in own - sets:
        file = PACKAGE / folder / f"{module.rpartition('.')[2]}.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in own - {module}, (
                    f"{module} imports the entry {node.module}: move what both need into a file of advbench/{folder} "
                    "without ENTRIES; a set names its parts as 'members' in ENTRIES"
                )


def test_names_are_listed_and_misspelt_ones_hinted_at_without_torch() -> None:
    code = (
        "import sys, advbench\n"
        "from advbench.registry import entries\n"
        f"print([len(entries(folder)) > 0 for folder in {FOLDERS!r}], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[True,", "True,", "True,", "True,", "True]", "False"]
    with pytest.raises(UserError, match="did you mean pgd-at"):
        find("methods", "pdg-at")


def test_a_plug_in_comes_by_module_and_name() -> None:
    assert find("attacks", "advbench.attacks.pgd:PGD").create(name="mine", steps=2).steps == 2
    with pytest.raises(UserError, match="no_such_module"):
        find("methods", "no_such_module:x")


def test_an_unknown_setting_names_the_near_ones() -> None:
    with pytest.raises(UserError, match="steps"):
        find("attacks", "pgd").create(stepz=3)
