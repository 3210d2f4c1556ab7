"""The folder is the registry: what every entry must tell, and that entries stand alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

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
        assert entry.summary and "\n" not in entry.summary, name
        assert callable(entry.load()), name


@pytest.mark.parametrize("folder", ["methods", "attacks"])
def test_no_entry_imports_another(folder: str) -> None:
    own = {entry.module for entry in entries(folder).values()}
    # Sets and wrappers are made of members: they are the one kind of entry that names others.
    sets = {entry.module for entry in entries(folder).values() if "members" in entry.about}
    for module in own - sets:
        file = PACKAGE / folder / f"{module.rpartition('.')[2]}.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in own - {module}, f"{module} imports {node.module}"


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
