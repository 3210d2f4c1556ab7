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


@pytest.mark.usefixtures("started_by_fork")
@pytest.mark.filterwarnings("default", "ignore::advbench.errors.CodeRuns")  # of other libraries
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_page_is_a_session_in_an_empty_folder(cli: Any, page: Path) -> None:
    pages.run(page, cli)


@pytest.mark.parametrize("page", [*map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md")), *HOW_TO], ids=lambda p: p.stem)
def test_command_lines_have_the_right_flags(page: Path) -> None:
    assert pages.check_flags(page) or page.stem == "index"


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ("```bash\nadvbench list nothing\n```", "exit 2"),
        ("```bash\nadvbench list attacks  # exit 1: it is not\n```", "exit 0"),
        ("```bash\nadvbench list attacks\n```\n```text\nmethods (15)\n```", "not printed in this order: methods"),
        ("```python\nprint(1, 'b', 'c')\n```\n```text\n2 b d\n```", "not printed in this order: 2 b d"),
        ("```bash\nls made.py\n```", "exit 2"),
    ],
)
def test_a_page_that_says_what_is_not_so_fails(cli: Any, page: str, why: str) -> None:
    path = cli.folder / "page.md"
    path.write_text(f"Text.\n{page}\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=why):
        pages.run(path, cli)


def test_a_session(cli: Any) -> None:
    path = cli.folder / "page.md"
    path.write_text(
        "Greetings, in `hello.py`:\n```python\nprint('record', '0123456789abcdef')\n```\n"
        "```bash\npython hello.py\n```\n```text\nrecord aaaaaaaaaaaaaaaa\n```\n"
        "<!-- not run: it cannot -->\n```bash\nadvbench list attacks\nfalse\n```\n"
        "```bash\necho it was \\\n  aaaaaaaaaaaaaaaa > said\n```\n",
        encoding="utf-8",
    )
    pages.run(path, cli)
    assert (cli.folder / "said").read_text() == "it was 0123456789abcdef\n"
    assert pages.check_flags(path) == 1


def test_the_five_lines_of_the_readme(cli: Any) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    exec(text.replace('"cifar10"', '"digits"'), {"net": net})
    assert "accuracy" in cli.capture.readouterr().out
    kept = cli.folder.rglob("records/digits/linf/*.*")
    assert sorted(path.suffix for path in kept) == [".json", ".npz"]
