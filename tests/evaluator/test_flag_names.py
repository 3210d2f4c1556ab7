"""The glossary has an entry for every flag, and for no other, with the severities that the code can give it."""

from __future__ import annotations

import re
from pathlib import Path

import advbench
from advbench.record.glossary import BLACK_BOX_AHEAD, GLOSSARY, SEVERITIES

PACKAGE = Path(advbench.__file__).parent
SOURCES = [
    *(PACKAGE / "evaluator").rglob("*.py"),
    *(PACKAGE / "record").rglob("*.py"),
    *(PACKAGE / "trainer").glob("*.py"),
]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.name != "glossary.py")
RAISED = re.compile(r"""(?:\bnote\(|\bgraded\(|\bFlag\(\s*name=)\s*f?"([^"]+)\"""")
FIXED = re.compile(r"""\bFlag\(\s*name="([^"]+)",\s*severity="(\w+)\"""")
NOTES = re.compile(r"""\bnote\(\s*"([^"]+)\"""")
ANY = re.compile(r"\{.*\}")  # the name of an attack


def test_every_flag_is_documented() -> None:
    raised = {ANY.sub("NAME", name) for name in RAISED.findall(TEXT)}
    assert len(raised) > 30
    undocumented = {name for name in raised - set(GLOSSARY) if not name.startswith("NAME")}
    assert undocumented == set() and BLACK_BOX_AHEAD == "NAME-wins"
    assert {name for name in GLOSSARY if name != BLACK_BOX_AHEAD and f'"{name}"' not in TEXT} == set()


def test_the_severities_are_those_of_the_code() -> None:
    given = {*FIXED.findall(TEXT), *((name, "note") for name in NOTES.findall(TEXT))}
    assert len(given) > 20
    assert {(name, severity) for name, severity in given if severity not in GLOSSARY[name].severity} == set()
    assert all(any(one in meaning.severity for one in SEVERITIES) for meaning in GLOSSARY.values())
