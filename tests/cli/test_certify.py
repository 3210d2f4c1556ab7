"""`evaluate --certify`: what is proved stands beside the accuracy, and `--again` repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVALUATE = ("evaluate", "--attack", "fgsm", "--eps", "0,0.001", "-n", "70", "--probes", "off", "--out", "o")


def test_the_proved_share_is_shown_kept_and_repeated(cli: Any, run_folder: Path) -> None:
    ran = cli(*EVALUATE, "--model", run_folder, "--certify", "after")
    assert ran.code == 0 and "certified %" in ran.out and "proofs: " in ran.out
    (path,) = Path("o").rglob("records/**/*.json")
    curve = json.loads(path.read_text())["curve"]
    assert curve[0]["certified"] == curve[0]["accuracy"] and 0 < curve[1]["certified"] <= curve[1]["accuracy"]
    again = cli("evaluate", "--again", path, "--model", run_folder)
    assert again.code == 0 and f"the same: record {path.stem}" in again.out
    first = cli(*EVALUATE, "--model", run_folder, "--certify", "first", "--json")
    found = json.loads(first.out.splitlines()[-1])
    assert [one["accuracy"] for one in found["curve"]] == [one["accuracy"] for one in curve]
    assert found["environment"]["certify"]["skipped_strikes"] > 0


def test_what_asks_for_no_proofs_is_refused(cli: Any, run_folder: Path) -> None:
    for words, said in (
        ("--certify --json", "unknown value of --certify '--json': choose from after, first, off"),
        ("--certify-seconds 5", "add --certify after, or first"),
        ("--certify after --norm l0 --eps 0,5", "they are for linf, l2, l1"),
    ):
        ran = cli("evaluate", "--model", run_folder, *words.split())
        assert ran.is_one_clear_line and said in ran.err, ran.err
