"""Markdown files of the benches: a title, and sections that each run writes anew under a heading of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from advbench.files import write_atomic

SPEED = """# Our engine and trainer beside other libraries

Written by `make bench` and `make bench-training`: the same net, images, eps, budget and threads, round by round. Only
the ratios of one table are worth quoting.

Attacks: robust accuracy is what the attack alone leaves; peers' hits are judged by the model itself, outside of their
time. Ours is what `advbench evaluate` does: the time has the clean pass, the start of processes, every hit's
verification, and what follows in fp32 on a search in bf16. Training: ours is what `advbench train` does; forward and
backward passes are those of one image in one step.
"""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of rows with the same columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(file: Path, title: str, heading: str, text: str) -> None:
    """Put `text` under `heading` in `file`: in the place of the section of that heading, or last. `title` is on top."""
    found = file.read_text(encoding="utf-8") if file.exists() else ""
    sections = {one.partition("\n")[0]: one.partition("\n")[2].strip() for one in re.split(r"(?m)^## ", found)[1:]}
    sections[heading] = text.strip()
    told = [title.strip(), *(f"## {name}\n\n{section}" for name, section in sections.items())]
    file.parent.mkdir(parents=True, exist_ok=True)  # the table has taken hours
    write_atomic(file, "\n\n".join(told) + "\n")
