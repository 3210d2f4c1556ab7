"""The report of the benches: each run writes its own section and leaves the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def test_a_run_replaces_its_own_section_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "bench"))
    import report

    try:
        file, cells = tmp_path / "speed.md", report.table([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}])
        assert cells == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
        report.write(file, "# Title\n", "pgd: lenet5", f"first\n\n{cells}")
        report.write(file, "# Title\n", "training: lenet5", "second\n")
        report.write(file, "# New title\n\nwith ## two lines\n", "pgd: lenet5", "again\n")
        wanted = "# New title\n\nwith ## two lines\n\n## pgd: lenet5\n\nagain\n\n## training: lenet5\n\nsecond\n"
        assert file.read_text(encoding="utf-8") == wanted
    finally:
        sys.modules.pop("report", None)


def test_the_committed_table_is_in_sections_of_the_benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "bench"))
    import report

    try:
        text = (Path(__file__).parents[1] / "leaderboards/speed-cpu.md").read_text(encoding="utf-8")
        assert text.startswith(report.SPEED) and text.count("\n## ") > 5
    finally:
        sys.modules.pop("report", None)
