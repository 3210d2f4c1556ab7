"""--dry-run says what would be done and writes nothing; a run resumes by its folder; what is there says so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

PGD = ["--model", "runs/a", "--attack", "pgd", "--set", "steps=3", "--eps", "0,0.05,0.1", "-n", "40"]


def test_of_an_evaluation(cli: Any, run_folder: Path) -> None:
    before = cli.files()
    ran = cli("evaluate", *PGD, "--dry-run")
    assert ran.code == 0 and not ran.err and cli.files() == before
    first, head, row, passes, last = ran.out.splitlines()
    assert first.startswith("runs/a: pgd, linf eps 0,0.05,0.1 (given), the first 40 images of digits")
    assert head.split() == ["attack", "forward", "backward", "settings"]
    assert row.split()[:3] == ["pgd", "320", "320"] and "steps=3" in row  # 40 images x 4 queries x 2 bisections
    assert re.search("roughly 320 forward and 320 backward passes", passes)
    assert last == "into runs/a/records/digits/linf: nothing was measured or written"
    about = json.loads(cli("evaluate", *PGD, "--curve", "exact", "--dry-run", "--json").out)
    assert (about["model"], about["n"], about["eps"]) == ("runs/a", 40, ["0", "0.05", "0.1"])
    assert about["forwards"] == 40 * 4 * 2 and about["attack"][0]["settings"]["steps"] == 3


def test_it_refuses_what_the_evaluation_would(cli: Any, run_folder: Path) -> None:
    assert cli("evaluate", *PGD, "--set", "stps=1", "--dry-run").is_one_clear_line
    assert cli("evaluate", *PGD, "--out", "runs/a/run.json", "--dry-run").is_one_clear_line


def test_of_an_attack(cli: Any, run_folder: Path) -> None:
    before = cli.files()
    ran = cli("attack", "--attack", "square", "--set", "n_queries=5", "-n", "8", "--dry-run")
    assert ran.code == 0 and cli.files() == before
    assert re.search(r"square +48 +0 ", ran.out) and "into attacks/square-a-digits-linf-0.1: nothing" in ran.out
    early = cli("attack", "--attack", "square", "--set", "early_stop=0.1", "-n", "8", "--dry-run")
    assert "square makes far fewer" in early.out and "makes far fewer" not in ran.out


def test_a_measured_record_says_how_to_repeat_it(cli: Any, run_folder: Path) -> None:
    (first, again, resumed) = (cli("evaluate", *PGD, *more) for more in ((), (), ("--resume",)))
    assert "was there before" not in first.err and "--resume shows it without measuring again" in again.err
    record = re.search("record (.*)", first.out)
    assert record is not None and f"advbench evaluate --again {record[1]})" in resumed.out


def test_a_run_resumes_by_its_folder_alone(cli: Any, run_folder: Path) -> None:
    ran = cli("train", "--resume", "--out", run_folder, "--device", "cpu")
    assert ran.code == 0 and "is finished: nothing to do (--force trains it again)" in ran.err, ran.err
    refused = cli("train", "--resume", "--out", run_folder, "--lr", "3")
    assert refused.is_one_clear_line and "go on with its own by advbench train --resume --out runs/a" in refused.err
    assert "act" in cli("train", "--resume", "--out", run_folder, "--method", "act").err


def test_an_attack_that_fells_nothing_has_no_pictures(cli: Any, run_folder: Path) -> None:
    ran = cli("attack", "--eps", "0.000001", "-n", "4", "--format", "png")
    assert ran.code == 0 and "no image was felled: there is no adversarial example" in ran.out
    assert "0 of 0" not in ran.out


def test_results_in_python_are_printed_as_tables(cli: Any, run_folder: Path) -> None:
    import advbench

    result = advbench.evaluate("runs/a", attack="pgd", eps=[0, 0.1], n=10)
    lines = str(result).splitlines()
    assert lines[0] == "runs/a: pgd, linf, 10 images of digits" and "accuracy %" in lines[1]
    assert [line.split()[0] for line in lines[2:4]] == ["0", "0.1"]
    for one, name in ((result, "Evaluation"), (result.record, "Record"), (result.fates, "Fates")):
        assert repr(one).startswith(f"<{name} ") and len(repr(one)) < 160 and "\n" not in repr(one)
    found = advbench.compare(result, result)
    assert "quantity" in str(found) and repr(found).startswith("<Comparison on digits, linf: Compared with")
    assert dir(advbench) == sorted(advbench.__all__)
    with pytest.raises(advbench.UserError, match=r"^n=0: choose at least 1 image"):
        advbench.evaluate("runs/a", n=0)


def test_messages_in_python_name_arguments() -> None:
    from advbench.public import in_python

    for theirs, ours in {
        "pass --trust-code, or name it on the command line too": "pass trust_code=True, or name it in the call too",
        "resume it with --resume, or name another --out": "resume it with resume=True, or name another out",
        "write --set source=RUN; measure it by advbench evaluate --model x; -n is too large": "write "
        "settings={'source': RUN}; measure it by advbench evaluate --model x; n is too large",
        "--mean 127: images are in [0, 1]": "mean=127: images are in [0, 1]",
    }.items():
        assert in_python(theirs) == ours
