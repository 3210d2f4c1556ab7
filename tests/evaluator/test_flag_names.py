"""docs/flags.md has a line for every flag, and for no other."""

from __future__ import annotations

import re
from pathlib import Path

import advbench

PACKAGE = Path(advbench.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "flags.md"
RAISED = re.compile(r"""(?:\bnote\(|\bgraded\(|\bFlag\(\s*name=)\s*f?"([^"]+)\"""")
ANY = re.compile(r"\{.*\}")  # the name of an attack


def test_every_flag_is_documented() -> None:
    sources = [
        *(PACKAGE / "evaluator").rglob("*.py"),
        *(PACKAGE / "record").rglob("*.py"),
        *(PACKAGE / "trainer").glob("*.py"),
    ]
    text = "\n".join(path.read_text() for path in sources)
    raised = {ANY.sub("NAME", name) for name in RAISED.findall(text)}
    assert len(raised) > 30
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([A-Za-z-]+)`", row)} - {"square-wins"}
    undocumented = {name for name in raised - documented if not name.startswith("NAME")}
    assert undocumented == set() and "NAME-wins" in documented
    unknown = {name for name in documented - {"NAME-wins"} if f'"{name}"' not in text}
    assert unknown == set()
