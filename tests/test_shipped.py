"""The leaderboards in the repository are what their records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from advbench.leaderboard import check
from advbench.record import load_records

LEADERBOARDS = Path(__file__).parent.parent / "leaderboards"


def test_tables_and_figures_follow_from_the_records() -> None:
    records, damaged = load_records(LEADERBOARDS / "records")
    assert records and damaged == []
    assert check(LEADERBOARDS) == []


@pytest.mark.parametrize("place", ["records", "."])
def test_nothing_lies_there_that_no_record_made(place: str) -> None:
    records, _ = load_records(LEADERBOARDS / "records")
    boards = {f"{record.dataset.name}-{record.norm}" for record in records}
    if place == "records":
        made = {f"{record.id}{end}" for record in records for end in (".json", ".npz")}
        found = {
            file.name
            for file in (LEADERBOARDS / "records").rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }
    else:
        made = {f"{board}{end}" for board in boards for end in (".csv", ".md", ".svg")} | {"EFFECTS.md"}
        found = {file.name for file in LEADERBOARDS.iterdir() if file.is_file() and not file.name.startswith(".")}
    assert found == made
