"""Tables say exactly what the records say, whatever the order, the writers and the names."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import made, order, sections, unranked

from advbench import escape, figure, leaderboard
from advbench.errors import UserError
from advbench.record import (
    AttackRef,
    DatasetRef,
    Environment,
    Flag,
    ModelRef,
    Trained,
    load_record,
    load_records,
)

WRITERS = """
import sys
from pathlib import Path
import numpy as np
from advbench.eps import parse_eps_list
from advbench.leaderboard import publish
from advbench.record import AttackRef, DatasetRef, Engine, Environment, Fates, ModelRef, Record

folder, writer, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for row in range(rows):
    fell = np.random.default_rng(1000 * writer + row).integers(-1, 3, 20)
    fates = Fates(fell, np.where(fell > 0, 0, -1))
    record = Record.of(
        fates,
        model=ModelRef(spec=f"runs/w{writer}-{row}", arch="mlp", params=1, weights_sha256=f"{100 * writer + row:064x}"),
        dataset=DatasetRef(name="digits", split="test", indices="first:20", images_sha256="b" * 64),
        norm="linf", eps=parse_eps_list("0,0.05,0.1"), attack=[AttackRef(name="pgd", version="1")],
        engine=Engine(name="own", version="1", slots=64, precision="fp32"), seed=0,
        environment=Environment(advbench="0.1.0", date="2026-08-01T12:00:00+00:00"),
    )
    publish(record, fates, folder)
"""


def test_csv_holds_the_records_numbers() -> None:
    flags = [Flag(name="small-n", severity="note"), Flag(name="square-wins", severity="suspect", eps=0.1)]
    record, _ = made([90, 70, 50], flags=flags, forwards=30_000, backwards=10_000, seed=7)
    rows = list(csv.DictReader(io.StringIO(leaderboard.to_csv([record]))))
    assert ",".join(rows[0]) == (
        "model,method,arch,params,dataset,norm,attack,eps,eps_text,n,accuracy,ci_low,ci_high,clean,certified,train_eps,"
        "train_seed,train_passes,seed,passes,protocol,flags,weights_sha256,record,version,date"
    )
    assert len(rows) == 3
    for row, point in zip(rows, record.curve, strict=True):
        assert float(row["eps"]) == point.eps and row["eps_text"] == point.eps_text
        assert float(row["accuracy"]) == point.accuracy
        assert (float(row["ci_low"]), float(row["ci_high"])) == (point.ci_low, point.ci_high)
        assert (row["model"], row["method"], row["record"]) == ("runs/act", "act", record.id)
        assert (float(row["train_eps"]), row["n"], row["certified"]) == (8 / 255, "1000", "")
        assert row["flags"] == "small-n:note;square-wins:suspect@0.1"
        assert (row["train_seed"], row["train_passes"], row["seed"], row["passes"]) == ("3", "", "7", "40.0")


def test_markdown_is_sorted_by_accuracy_at_the_reference_and_ties_by_id() -> None:
    records = [made([99, 80, accuracy], spec=f"runs/{accuracy}-{i}")[0] for i, accuracy in enumerate([10, 50, 30, 50])]
    files = leaderboard.render(records)
    (ranking,) = sections(files["cifar10-linf.md"].decode())
    rows = ranking.rows
    ids = sorted(record.id for record in records if record.curve[2].robust == 500)
    assert [row["model"] for row in rows][2:] == ["runs/30-2", "runs/10-0"]
    assert [row["record"][1:17] for row in rows][:2] == ids
    assert [row["#"] for row in rows] == ["1", "2", "3", "4"]
    shown = (rows[0]["clean"], rows[0]["4/255"], rows[0]["8/255"])
    assert shown == ("99.0", "80.0 (77.4–82.4)", "50.0 (46.9–53.1)")


@pytest.mark.parametrize("severity", ["suspect", "broken"])
def test_the_doubted_are_below_the_line_and_not_ranked(severity: str) -> None:
    best, _ = made([99, 99, 99], spec="runs/masked", flags=[Flag(name="masked", severity=severity)])
    honest, _ = made([90, 60, 40], spec="runs/honest", flags=[Flag(name="small-n", severity="note")])
    page = leaderboard.render([best, honest])["cifar10-linf.md"].decode()
    above, below = sections(page)
    assert [(row["#"], row["model"], row["flags"]) for row in above.rows] == [("1", "runs/honest", "small-n (note)")]
    assert [(row["#"], row["model"], row["flags"]) for row in below.rows] == [
        ("–", "runs/masked", f"masked ({severity})")
    ]
    assert unranked(page) == {"runs/masked": f"masked is {severity}"}


@pytest.mark.parametrize(
    ("dataset", "norm", "grids", "expected"),
    [
        ("cifar10", "linf", ["0,4/255,8/255,16/255"], 8 / 255),
        ("cifar100", "linf", ["0,8/255", "0,4/255"], 8 / 255),
        ("mnist", "linf", ["0,0.1,0.3,0.4"], 0.3),
        ("fashion-mnist", "linf", ["0,0.1,0.3"], 0.1),
        ("digits", "linf", ["0,0.1,0.3"], 0.1),
        ("cifar10", "l2", ["0,0.25,0.5,1"], 0.5),
        ("mnist", "l2", ["0,1,2", "0,1,3"], 1.0),
        ("cifar10", "linf", ["0,2/255,4/255", "0,4/255,16/255"], 4 / 255),
        ("svhn", "linf", ["0.1", "0.2"], 0.2),
        ("svhn", "linf", ["0,0.1", "0,0.2"], 0.2),
        ("svhn", "linf", ["0,0.1,0.2", "0,0.10000000000001,0.3"], 0.1),
        ("svhn", "linf", ["0", "0"], 0),
    ],
)
def test_reference_eps(dataset: str, norm: str, grids: list[str], expected: float) -> None:
    ref = DatasetRef(name=dataset, split="test", indices="first:1000", images_sha256="b" * 64)
    records = [made([90] * len(grid.split(",")), spec=grid, eps=grid, dataset=ref, norm=norm)[0] for grid in grids]
    assert leaderboard.reference_eps(records) == expected


def test_a_record_not_measured_at_the_reference_is_not_ranked() -> None:
    files = leaderboard.render([made([90, 60, 40])[0], made([99, 98], eps="0,1/255", spec="runs/easy")[0]])
    page = files["cifar10-linf.md"].decode()
    assert [models for _, models in order(page)] == [["runs/act"]]
    assert unranked(page) == {"runs/easy": "not measured at the ranked eps"}


def test_superseded_records_are_left_out() -> None:
    old, _ = made([90, 70, 50])
    new, _ = made([90, 70, 48], supersedes=old.id)
    files = leaderboard.render([old, new])
    assert old.id not in files["cifar10-linf.csv"].decode() and new.id in files["cifar10-linf.csv"].decode()
    shown, left_out = files["cifar10-linf.md"].decode().split("## Not shown")
    assert old.id not in shown and f"replaced by another record of the same model and images: [{old.id}]" in left_out


def test_same_records_same_bytes_in_any_order_and_process(tmp_path: Path) -> None:
    given_records = [made([99 - i, 60 + i % 3, 40], spec=f"runs/{i}") for i in range(15)]
    fates_by_id = {record.id: fates for record, fates in given_records}
    expected = leaderboard.render([record for record, _ in given_records], fates=fates_by_id)
    shuffled = [record for record, _ in given_records]
    random.Random(0).shuffle(shuffled)
    assert leaderboard.render(shuffled, fates=fates_by_id) == expected
    for record, fates in given_records:
        record.save(tmp_path, fates)
    script = "import sys, pathlib, advbench.leaderboard as b; b.build(*(pathlib.Path(p) for p in sys.argv[1:]))"
    for seed in ("1", "2"):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "records"), str(out)],
            check=True, env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed, "MPLCONFIGDIR": str(tmp_path)},
        )  # fmt: skip
        assert {name: (out / name).read_bytes() for name in expected} == expected


def test_build_and_check(tmp_path: Path) -> None:
    record, fates = made([90, 70, 50])
    other, other_fates = made([90, 70, 50], norm="l2", eps="0,0.5,1")
    record.save(tmp_path, fates)
    other.save(tmp_path, other_fates)
    assert len(leaderboard.check(tmp_path)) == 7  # nothing is built yet
    built = leaderboard.build(tmp_path / "records", tmp_path)
    tables = [f"cifar10-{norm}.{kind}" for norm in ("l2", "linf") for kind in ("csv", "md", "svg")]
    assert sorted(path.name for path in built.files) == [*tables, "index.html"]
    assert built.damaged == () and leaderboard.check(tmp_path) == []

    (tmp_path / "cifar10-linf.csv").write_text((tmp_path / "cifar10-linf.csv").read_text().replace("0.5", "0.9"))
    assert [found.path.name for found in leaderboard.check(tmp_path)] == ["cifar10-linf.csv"]
    page = (tmp_path / "index.html").read_text()
    (tmp_path / "index.html").write_text(page.replace("50.0", "90.0"))
    assert [found.path.name for found in leaderboard.check(tmp_path)] == ["cifar10-linf.csv", "index.html"]
    leaderboard.build(tmp_path / "records", tmp_path)
    assert leaderboard.check(tmp_path) == []

    svg = (tmp_path / "cifar10-l2.svg").read_bytes()
    (tmp_path / "cifar10-l2.svg").write_bytes(svg.replace(b"#0072b2", b"#ff0000"))
    assert [found.path.name for found in leaderboard.check(tmp_path)] == ["cifar10-l2.svg"]
    by_another = re.sub(rb"Matplotlib v[^,<]*", b"Matplotlib v3.8.0", svg.replace(b"#0072b2", b"#0072b3"))
    (tmp_path / "cifar10-l2.svg").write_bytes(by_another)
    assert leaderboard.check(tmp_path) == []  # the same numbers, drawn by another matplotlib
    (tmp_path / "cifar10-l2.svg").write_bytes(re.sub(rb"numbers [0-9a-f]", b"numbers z", by_another))
    assert [found.path.name for found in leaderboard.check(tmp_path)] == ["cifar10-l2.svg"]


def test_pages_link_what_the_owner_says_of_the_models(tmp_path: Path) -> None:
    record, fates = made([90, 70, 50])
    record.save(tmp_path, fates)
    leaderboard.build(tmp_path / "records", tmp_path)
    pages = (tmp_path / "cifar10-linf.md", tmp_path / "index.html")
    assert not any("README" in page.read_text() for page in pages)
    (tmp_path / "README.md").write_text("They were trained by hand.\n")
    assert {found.path for found in leaderboard.check(tmp_path)} == {*pages}
    leaderboard.build(tmp_path / "records", tmp_path)
    assert all("README.md" in page.read_text() for page in pages) and leaderboard.check(tmp_path) == []
    assert (tmp_path / "README.md").read_text() == "They were trained by hand.\n"


def test_check_finds_damaged_records_and_tables_without_records(tmp_path: Path) -> None:
    record, fates = made([90, 70, 50])
    path = record.save(tmp_path, fates)
    leaderboard.build(tmp_path / "records", tmp_path)
    path.write_text(path.read_text().replace('"runs/act"', '"runs/xyz"'))
    found = leaderboard.check(tmp_path)
    assert found[0].path == path and "sealed" in found[0].reason
    assert [one.path.name for one in found[1:]] == ["cifar10-linf.md", "index.html"]
    assert all("no records behind it" in one.reason for one in found[1:])
    assert leaderboard.build(tmp_path / "records", tmp_path).damaged == (found[0],)


def test_publish_lists_the_record_and_reports_damage_beside_it(tmp_path: Path) -> None:
    first, fates = made([90, 70, 50])
    published = leaderboard.publish(first, fates, tmp_path)
    assert published.damaged == () and leaderboard.check(tmp_path) == []
    assert leaderboard.publish(first, fates, tmp_path) == published
    published.path.with_suffix(".npz").unlink()
    second, fates = made([91, 70, 50], spec="runs/other")
    assert [found.path for found in leaderboard.publish(second, fates, tmp_path).damaged] == [published.path]
    assert first.id not in (tmp_path / "cifar10-linf.csv").read_text()


def test_a_lock_that_is_held_is_waited_for_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, fates = made([90, 70, 50])
    with leaderboard.locked(tmp_path / ".lock"):
        locked = leaderboard.locked
        monkeypatch.setattr(leaderboard, "locked", lambda path, **_: locked(path, timeout=0.1))
        with pytest.raises(UserError, match="another process has held"):
            leaderboard.publish(record, fates, tmp_path)
    monkeypatch.undo()
    assert leaderboard.check(tmp_path) != []  # the record is safe, the table waits for the next build
    leaderboard.build(tmp_path / "records", tmp_path)
    assert leaderboard.check(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.long)])
def test_eight_writers_damage_nothing(tmp_path: Path, count: int) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITERS)
    folder = tmp_path / "leaderboard"
    environment = {"PYTHONPATH": ":".join(sys.path), "MPLCONFIGDIR": str(tmp_path)}
    writers = [
        subprocess.Popen([sys.executable, str(script), str(folder), str(i), str(count)], env=environment)
        for i in range(8)
    ]
    assert [writer.wait() for writer in writers] == [0] * 8
    with (folder / "digits-linf.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["record"] for row in rows}) == 8 * count
    assert len(rows) == 3 * 8 * count
    records, damaged = load_records(folder / "records")
    assert len(records) == 8 * count and damaged == []
    assert leaderboard.check(folder) == []
    assert list(folder.rglob("*.tmp")) == []


NASTY = [
    "=HYPERLINK(0)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a|b", "a\nb", "| x |\n|--|", "`code`", "**bold**",
    "<script>alert(1)</script>", "<!-- hidden", "![x](http://evil)", "[x](javascript:alert(1))", "http://evil.example",
    "www.evil.example", "@everyone", "fixes #1", "\x1b[31mred\x1b[0m", "\x07", "\u202eright to left", "a\u2028b",
    "&lt;b&gt;", "$x^2$", "_x_", "~~x~~", '"quoted"', "a,b;c", "\\|", "\\", "]]>", "＝1", "名前", "_nolegend_",
    "-- -->", "",
]  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_names_inject_nothing(name: str) -> None:
    parts: dict[str, Any] = {
        "model": ModelRef(
            spec=name, arch=name, params=1, weights_sha256="a" * 64, trained=Trained(method=name, eps_text=name)
        ),
        "attack": [AttackRef(name=name, version=name)],
        "flags": [Flag(name=name, severity="suspect", detail=name)],
        "environment": Environment(advbench=name, date="2026-08-01"),
    }
    files = leaderboard.render([made([90, 70, 50], **parts)[0], made([90, 70, 51], spec="runs/plain")[0]])

    text = files["cifar10-linf.csv"].decode()
    rows = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in rows} == {len(leaderboard.COLUMNS)} and len(rows) == 7
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝")) for row in rows for cell in row)

    table = files["cifar10-linf.md"].decode()
    found = sections(table)
    assert sorted(part.below for part in found) == [False, True] and [len(part.rows) for part in found] == [1, 1]
    body = table.split("\n", 1)[1]  # below our own comment
    assert not re.search(r"<|(?<!\\)`|://|www\.|@[a-z]|(?<!&)#\d|(?<!\\)!\[|(?<!\\)\$", body)
    assert re.findall(r"(?<!\\)\[[^\]]*\]\(([^)]*)\)", body)[:2] == ["cifar10-linf.svg", "cifar10-linf.csv"]
    assert all(link.startswith("records/") for link in re.findall(r"(?<!\\)\[[^\]]*\]\(([^)]*)\)", body)[2:])

    for content in (text, table):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", content)

    svg = ElementTree.fromstring(files["cifar10-linf.svg"])
    assert not [node for node in svg.iter() if str(node.tag).endswith(("script", "image", "}a", "foreignObject"))]


@given(st.text(max_size=40))
def test_escapes_hold_for_any_text(text: str) -> None:
    cell = escape.markdown(text)
    assert "\n" not in cell and "<" not in cell and "\x1b" not in cell
    assert len(re.split(r"(?<!\\)(?:\\\\)*\|", f"{cell}|")) == 2  # one cell stays one cell
    assert not escape.csv_text(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert escape.visible(escape.visible(text)) == escape.visible(text)
    escape.visible(text).encode()


def test_plain_names_stay_as_they_are() -> None:
    for name in ("runs/act-digits-small_cnn-linf-0.1-s0", "robustbench:Carmon2019Unlabeled", "wrn-28-10", "8/255"):
        assert escape.markdown(name) == name and escape.csv_text(name) == name and escape.visible(name) == name


def test_pareto_front() -> None:
    points = [
        figure.Point(0.9, 0.3, 0),
        figure.Point(0.8, 0.5, 1),
        figure.Point(0.7, 0.4, 2),  # beaten by the second
        figure.Point(0.9, 0.2, 3),  # beaten by the first
        figure.Point(1.0, 1.0, 4, doubted=True),
    ]
    assert figure.front(points) == [points[1], points[0]]
    assert figure.front([]) == []


def test_no_torch() -> None:
    script = "import sys, advbench.leaderboard, advbench.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_records_are_never_edited_by_building(tmp_path: Path) -> None:
    record, fates = made([90, 70, 50])
    path = leaderboard.publish(record, fates, tmp_path).path
    leaderboard.build(tmp_path / "records", tmp_path)
    assert load_record(path)[0] == record
    assert json.loads(path.read_text())["id"] == record.id
