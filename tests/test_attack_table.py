"""The arithmetic of `make attack-table` on fates made by hand, and a table of two attacks on a small run."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

N = 10


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "bench"))
    yield importlib.import_module("attack_table")
    sys.modules.pop("attack_table", None)


def found(bench: ModuleType, *fell: int, passes: float = 100.0, **more: Any) -> Any:
    """An attack that felled these images; of all nets, image 9 is wrong without an attack."""
    return bench.Found(~np.isin(np.arange(N), [9, *fell]), passes, **more)


def net(bench: ModuleType, name: str = "a", **attacks: Any) -> Any:
    return bench.Net(name, "0.1", np.arange(N) != 9, attacks)


def several(bench: ModuleType) -> Any:
    attacks = {
        "pgd": found(bench, 0),
        "square": found(bench, 0, 1, passes=500),
        "odi-margin": found(bench, 0, 2, 3, passes=50),
        "autoattack": found(bench, 0, 1, 2, passes=1000),
    }
    return bench.Net("a", "0.1", np.arange(N) != 9, attacks)


def test_the_envelope_and_the_distance_from_it(bench: ModuleType) -> None:
    one = several(bench)
    assert np.flatnonzero(one.envelope).tolist() == [4, 5, 6, 7, 8]
    names = ("pgd", "square", "odi-margin", "autoattack")
    assert [round(one.robust(name), 9) for name in names] == [80, 70, 60, 60]
    assert [round(one.distance(name), 9) for name in names] == [30, 20, 10, 10]
    assert [one.optimality(name) for name in names] == [25, 50, 75, 75]  # of the 4 images that any felled


def test_an_attack_that_fells_nothing_where_nothing_falls_has_no_optimality(bench: ModuleType) -> None:
    one = net(bench, pgd=found(bench), square=found(bench))
    assert one.optimality("pgd") is None and one.distance("pgd") == 0


def test_alone_is_what_no_other_found_but_sets_and_members_are_not_compared(bench: ModuleType) -> None:
    one = several(bench)
    # square: image 1, which autoattack has from it; autoattack: none without square, since odi-margin found 2.
    assert {name: one.alone(name) for name in one.found} == {"pgd": 0, "square": 1, "odi-margin": 1, "autoattack": 1}
    others = {**one.found, "quick": found(bench, 0, 1, 2, 3), "pma": found(bench, 0)}
    assert net(bench, **others).alone("autoattack") == 0
    assert net(bench, **others).alone("square") == 1  # quick is another of its sets
    others["quick"] = found(bench, 0, 1, 2, 3, escalated=True)
    assert net(bench, **others).alone("odi-margin") == 1 == net(bench, **others).alone("autoattack")
    assert bench.related("square", "autoattack") and bench.related("autoattack", "square")
    assert not bench.related("apgd-t, malt", "autoattack") and bench.related("apgd-t", "autoattack")
    assert not bench.related("odi-margin", "autoattack") and not bench.related("square", "pgd")


def test_passes_are_shared_out_over_nets_that_keep_a_fifth(bench: ModuleType) -> None:
    kept = net(bench, pgd=found(bench, passes=30), autoattack=found(bench, *range(7), passes=100))  # 2 of 10 stand
    lost = net(bench, pgd=found(bench, passes=9000), autoattack=found(bench, *range(8), passes=1))  # 1 stands
    more = net(bench, pgd=found(bench, passes=10), autoattack=found(bench, passes=300))
    assert bench.share([kept, lost, more], "pgd") == pytest.approx(10)
    assert bench.share([lost], "pgd") is None


def test_a_row_an_attack_over_all_nets(bench: ModuleType) -> None:
    other = net(bench, "b", **{**several(bench).found, "pgd": found(bench, 4, 5)})
    rows = {row[0]: row[1:] for row in bench.summary([several(bench), other])[1:]}
    assert list(rows) == ["pgd", "square", "odi-margin", "autoattack"]  # what both have, in the order of ATTACKS
    # pgd: 30 points above the envelope, then 40; 1 of 4, then 2 of 6 images; alone images 4 and 5.
    assert rows["pgd"] == ["35.00", "40.0", f"{(25 + 100 / 3) / 2:.1f}", "2", "10.0"]
    assert rows["autoattack"][-1] == "100.0"


def three(bench: ModuleType, above: int = 0, cost: float = 190.0, went_on: int = 0) -> list[Any]:
    """Nets on which quick leaves `above` more images than autoattack, at `cost` passes; `went_on` of them escalated."""
    return [
        net(
            bench,
            str(number),
            quick=found(bench, *range(above, 3), passes=cost, escalated=number < went_on),
            autoattack=found(bench, 0, 1, 2, passes=1000),
        )
        for number in range(4)
    ]


def test_what_quick_is_to_reach(bench: ModuleType) -> None:
    lines = bench.quick_lines(three(bench))
    assert [line.endswith(": reached.") for line in lines] == [True] * 3
    assert "at most +0.0 points" in lines[0] and "the 4 nets" in lines[1] and "19.0 % of autoattack's" in lines[1]
    assert lines[2].startswith("0 of 4 nets escalated; of the 4 where no flag doubts AutoAttack, 0.")
    above = bench.quick_lines(three(bench, above=1))
    assert "at most +10.0 points (0)" in above[0] and above[0].endswith("**missed**.")
    assert bench.quick_lines(three(bench, cost=201.0))[1].endswith("**missed**.")


def test_nets_that_escalated_do_not_count_for_its_passes(bench: ModuleType) -> None:
    nets = three(bench, went_on=1)
    nets[0] = net(bench, "0", **{**nets[0].found, "quick": found(bench, 0, 1, 2, passes=1e6, escalated=True)})
    lines = bench.quick_lines(nets)
    assert "the 3 nets" in lines[1] and "19.0 %" in lines[1]
    assert lines[2].startswith("1 of 4 nets escalated; of the 4 where") and lines[2].endswith("reached.")
    assert bench.quick_lines(three(bench, went_on=2))[2].endswith("**missed**.")


def test_a_net_whose_autoattack_is_doubted_may_escalate(bench: ModuleType) -> None:
    nets = three(bench, went_on=2)
    nets[0].found["autoattack"] = found(bench, 0, 1, 2, passes=1000, doubts=["gradients"])
    line = bench.quick_lines(nets)[2]
    assert line.startswith("2 of 4 nets escalated; of the 3 where no flag doubts AutoAttack, 1.")
    assert "autoattack: gradients" in bench.markdown(nets, "here")


def test_a_table_of_a_run_goes_on_where_it_was(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from advbench import train

    settings = {"train_n": 512, "batch_size": 32, "validation.n": 64, "inner.steps": 2, "optim.lr": 0.05}
    train(
        "pgd-at", dataset="digits", arch="mlp", eps="0.1", epochs=1, settings=settings, device="cpu",
        out=tmp_path / "pgd-at-digits-mlp",
    )  # fmt: skip
    attacks = {"pgd": ("pgd", {}), "square": ("square", {"n_queries": 20}), "autoattack": ("pgd", {"steps": 30})}
    monkeypatch.setattr(bench, "ATTACKS", attacks)
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda count: None)
    out, records = tmp_path / "t.md", tmp_path / "records"
    argv = ["table", "-n", "20", "--records", str(records), "--out", str(out), f"{tmp_path}/pgd-at-digits-mlp@0.1"]
    monkeypatch.setattr(sys, "argv", argv)
    assert bench.main() == 0
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines()))
    assert [row["attack"] for row in rows] == list(attacks) and {row["net"] for row in rows} == {"pgd-at-digits"}
    robust = [float(row["robust"]) for row in rows]
    assert float(rows[0]["envelope"]) <= min(robust) and all(float(row["passes"]) > 0 for row in rows)
    for row in rows:
        assert next(records.rglob(f"{row['record']}.json"), None) is not None
    least = float(rows[0]["envelope"])
    above = [f" (+{100 * (value - least):.1f})" if value > least else "" for value in robust]
    cells = [f"{100 * value:.1f}{more}" for value, more in zip(robust, above, strict=True)]
    assert f"| pgd-at-digits | 0.1 | {' | '.join(cells)} | {100 * least:.1f} |" in out.read_text()

    page = out.read_text()
    out.unlink()
    monkeypatch.setattr("advbench.evaluator.parallel.share.attack_images", None)  # nothing is attacked again
    assert bench.main() == 0 and out.read_text() == page
    assert list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines())) == rows
