"""README and docs say what works: their pages run as sessions, and their command lines have the right flags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pages
import pytest
from torch import nn

ROOT = Path(__file__).parents[2]
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))


@pytest.mark.filterwarnings("default")  # of other libraries
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_page_is_a_session_in_an_empty_folder(cli: Any, page: Path) -> None:
    pages.run(page, cli)


@pytest.mark.parametrize("page", [*map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md")), *HOW_TO], ids=lambda p: p.stem)
def test_command_lines_have_the_right_flags(page: Path) -> None:
    assert pages.check_flags(page) or page.stem == "index"


def test_the_five_lines_of_the_readme(cli: Any) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    exec(text.replace('"cifar10"', '"digits"'), {"net": net})
    assert "accuracy" in cli.capture.readouterr().out
    kept = cli.folder.rglob("records/digits/linf/*.*")
    assert sorted(path.suffix for path in kept) == [".json", ".npz"]
