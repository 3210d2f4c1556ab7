"""The leaderboards in the repository are what their records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from advbench.compare import parse_gate
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.plan import ENGINE_VERSION
from advbench.leaderboard import check
from advbench.record import load_notices, load_record, load_records

ROOT = Path(__file__).parent.parent
LEADERBOARDS = ROOT / "leaderboards"
FOLDERS = (LEADERBOARDS, LEADERBOARDS / "small", LEADERBOARDS / "brief")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_and_figures_follow_from_the_records(folder: Path) -> None:
    records, damaged = load_records(folder / "records")
    assert records and damaged == []
    assert check(folder) == []


def test_a_board_has_one_budget_of_training() -> None:
    """The brief ones are of 10,000 images and 5 epochs, the others of all images."""
    for folder in FOLDERS:
        for record in load_records(folder / "records")[0]:
            trained = record.model.trained
            if record.dataset.name != "digits":
                assert trained is not None and trained.images_shown is not None
                assert (trained.images_shown < 100_000) is (folder.name == "brief"), record.id


@pytest.mark.parametrize("place", ["records", "."])
def test_nothing_lies_there_that_no_record_made(place: str) -> None:
    records, _ = load_records(LEADERBOARDS / "records")
    boards = {f"{record.dataset.name}-{record.norm}" for record in records}
    if place == "records":
        made = {f"{record.id}{end}" for record in records for end in (".json", ".npz")}
        made |= {f"{identifier}.notice.json" for identifier in load_notices(LEADERBOARDS / "records")[0]}
        found = {
            file.name
            for file in (LEADERBOARDS / "records").rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }
    else:
        made = {f"{board}{end}" for board in boards for end in (".csv", ".md", ".svg")}
        made |= {"README.md", "index.html", "EFFECTS.md", "speed-cpu.md", "parity.md", "attacks.md", "attacks.csv"}
        found = {file.name for file in LEADERBOARDS.iterdir() if file.is_file() and not file.name.startswith(".")}
        found = {name for name in found if ".journal" not in name}  # of a bench-cuda that goes on later
    own = {"speed-cuda.md"}  # which bench-cuda makes on this machine
    assert made <= found <= made | own


def test_the_gate_on_ourselves_and_the_workflow_name_a_record_that_is_there() -> None:
    workflow = (ROOT / ".github/workflows/robustness.yml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    baselines = re.findall(r"(?m)^(?: +baseline: |BASELINE := )(\S+)", workflow + makefile)
    assert len(baselines) == 2
    expressions = re.findall(r" fail-if: (.+)|--fail-if '(.+)'", workflow + makefile)
    assert len(expressions) == 2
    for baseline in baselines:
        record, _ = load_record(ROOT / baseline)
        for expression in ("".join(found) for found in expressions):
            for branch in parse_gate(expression):
                assert all(test.quantity.eps is None or record.at(test.quantity.eps.value) for test in branch.tests)
    assert "make gate" in (ROOT / ".ci/run").read_text()


def test_the_baseline_of_the_gate_on_ourselves_is_of_this_engine() -> None:
    """Else `make gate` refuses to compare: `make baseline` renews it."""
    makefile = (ROOT / "Makefile").read_text()
    (file,) = re.findall(r"(?m)^BASELINE := (\S+)", makefile)
    record, _ = load_record(ROOT / file)
    _, attacks = resolve(["autoattack"], {}, norm="linf", classes=10)
    assert record.engine.version == ENGINE_VERSION
    assert [one.model_dump(mode="json") for one in record.attack] == [one.model_dump(mode="json") for one in attacks]
    assert record.doubts() == ()
