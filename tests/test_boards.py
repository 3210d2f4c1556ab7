"""What a board ranks, in which table and order; what is below the line; and what is not shown, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import autoattack, images, made, order, record_of, sections, unranked

from advbench import leaderboard
from advbench.errors import UserError
from advbench.leaderboard.page_data import board_data
from advbench.leaderboard.protocol import protocol
from advbench.record import (
    ESCALATED,
    ESCALATION,
    RECHECK_SET,
    AttackRef,
    Damage,
    DatasetRef,
    Engine,
    Environment,
    External,
    Fates,
    Flag,
    ModelRef,
    Notice,
    Record,
    Trained,
    load_notices,
    load_record,
    load_records,
    write_notice,
)

PGD = [AttackRef(name="pgd", version="1", settings={"steps": 10, "set": "pgd"})]
FGSM = [AttackRef(name="fgsm", version="1", settings={"steps": 1, "set": "fgsm"})]


def page(*records: Record, notices: Mapping[str, Notice] | None = None) -> str:
    return leaderboard.to_markdown(leaderboard.board(records, notices or {}))


def engine(version: str = "3", name: str = "advbench", **rest: Any) -> Engine:
    return Engine(name=name, version=version, slots=64, **{"precision": "fp32", **rest})


def trained(seed: int | None = 0, **rest: Any) -> Trained:
    return Trained(**{"method": "act", "norm": "linf", "eps": 8 / 255, "eps_text": "8/255", "seed": seed, **rest})


def model(spec: str, weights: str = "a", **rest: Any) -> ModelRef:
    return ModelRef(**{"spec": spec, "arch": "mlp", "params": 1, "weights_sha256": weights * 64, **rest})


def test_each_protocol_has_a_ranking_of_its_own_the_strongest_first() -> None:
    all_of_it = images("first:10000")
    records = [
        made([90, 89, 88], spec="fgsm", attack=FGSM, dataset=all_of_it, n=10_000)[0],
        made([90, 80, 70], spec="pgd", attack=PGD)[0],
        made([90, 60, 50], spec="aa-1", attack=autoattack())[0],
        made([90, 60, 51], spec="aa-2", attack=autoattack())[0],
        made([90, 60, 40], spec="aa-all", attack=autoattack(), dataset=all_of_it, n=10_000)[0],
        made([90, 89, 87], spec="aa-of-one-step", attack=autoattack(steps=1), dataset=all_of_it, n=10_000)[0],
        made([90, 89, 86], spec="aa-of-one-query", attack=autoattack(n_queries=1), dataset=all_of_it, n=10_000)[0],
        made([90, 89, 85], spec="aa-of-one-target", attack=autoattack(n_targets=1), dataset=all_of_it, n=10_000)[0],
        made([90, 59, 49], spec="reference", attack=autoattack(), engine=engine("0.2.0", "pyautoattack"))[0],
    ]
    text = page(*records)
    assert order(text) == [
        ("autoattack on all 10,000 test images", ["aa-all"]),
        ("autoattack on the first 1,000 test images", ["aa-2", "aa-1"]),
        ("autoattack on the first 1,000 test images, run by pyautoattack", ["reference"]),
        ("autoattack on all 10,000 test images", ["aa-of-one-query"]),
        ("autoattack on all 10,000 test images", ["aa-of-one-target"]),
        ("autoattack on all 10,000 test images", ["aa-of-one-step"]),
        ("pgd on the first 1,000 test images", ["pgd"]),
        ("fgsm on all 10,000 test images", ["fgsm"]),
    ]
    csv = leaderboard.render(records)["cifar10-linf.csv"].decode()
    for record in records:
        assert f"Protocol {protocol(record).key}:" in text and protocol(record).key in csv
    svg = leaderboard.render(records)["cifar10-linf.svg"].decode()
    assert leaderboard.render(records[4:5])["cifar10-linf.svg"].decode() == svg  # the figure is the first table's alone


def test_rankings_come_first_the_strongest_attack_before_the_others() -> None:
    def on(name: str, n: int = 500, **settings: Any) -> Record:
        attack = [AttackRef(name=name, version="1", settings=settings)]
        return made(
            [90, 60, 50], n=n, spec=f"{name} {settings}", attack=attack, dataset=images(f"first:{n}", name="digits")
        )[0]

    strong, _ = made([90, 60, 40], n=499, spec="aa", attack=autoattack(), dataset=images("first:499", name="digits"))
    records = [
        on("fgsm", steps=1),
        on("square", n_queries=5000),
        on("rays", n_queries=10000),
        on("pgd", steps=20),
        strong,
    ]
    text = page(*records, on("few", 100, steps=1))
    assert [part.heading.split()[0] for part in sections(text)] == [
        "rays",
        "square",
        "pgd",
        "fgsm",
        "autoattack",
        "few",
    ]
    assert unranked(text)["aa"] == "fewer than 500 images" and len(order(text)) == 4
    svg = leaderboard.render(records)["digits-linf.svg"].decode()
    assert leaderboard.render(records[2:3])["digits-linf.svg"].decode() == svg


@pytest.mark.parametrize(
    ("change", "together"),
    [
        ({}, True),
        ({"engine": engine("2")}, True),
        ({"engine": engine(precision="bf16")}, True),
        ({"engine": engine(curve="exact")}, True),
        ({"engine": engine(name="pyautoattack")}, False),
        ({"seed": 5}, True),
        ({"eps": "0,1/255,8/255"}, True),
        ({"attack": [AttackRef(name="pgd", version="2", settings={"steps": 10, "set": "pgd"})]}, True),
        ({"attack": [AttackRef(name="pgd", version="1", settings={"steps": 20, "set": "pgd"})]}, False),
        ({"attack": [AttackRef(name="pgd", version="1", settings={"steps": 10, "target": None, "set": "pgd"})]}, True),
        ({"attack": [AttackRef(name="pgd", version="1", settings={"steps": 10, "eot": 5, "set": "pgd"})]}, False),
        ({"attack": [*PGD, *FGSM]}, False),
        ({"attack": [*PGD, AttackRef(name="apgd-ce", version="1", settings={"set": RECHECK_SET})]}, False),
        ({"dataset": images("random:1:1000")}, False),
        ({"model": model("m", "c", abstain="last")}, False),
        ({"model": model("m", "c", mean=(0.5,))}, True),
    ],
    ids=str,
)
def test_what_is_ranked_together(change: dict[str, Any], together: bool) -> None:
    base = {"attack": PGD, "engine": engine()}
    one, two = made([90, 60, 50], spec="one", **base)[0], made([90, 60, 40], spec="m", **{**base, **change})[0]
    assert [len(models) for _, models in order(page(one, two))] == ([2] if together else [1, 1])


def test_the_order_of_attacks_and_the_recheck_of_autoattack_in_bf16_change_nothing() -> None:
    recheck = [AttackRef(name=name, version="1", settings={"set": RECHECK_SET}) for name in ("apgd-ce", "apgd-t")]
    one, _ = made([90, 60, 50], spec="one", attack=[*autoattack(), *recheck], engine=engine(precision="bf16"))
    two, _ = made([90, 60, 40], spec="two", attack=autoattack()[::-1], engine=engine())
    assert order(page(one, two)) == [("autoattack on the first 1,000 test images", ["one", "two"])]
    csv = leaderboard.render([one])["cifar10-linf.csv"].decode()
    assert ",autoattack," in csv and RECHECK_SET not in csv


def test_quick_is_ranked_apart_whether_it_went_on_or_not() -> None:
    own = [
        AttackRef(name=name, version="1", settings={"steps": 100, "set": "quick"}) for name in ("odi-margin", "square")
    ]
    later = [
        AttackRef(name=ref.name, version="1", settings={**ref.settings, "set": "quick", "stage": ESCALATION})
        for ref in autoattack()
    ]
    went_on = Flag(name=ESCALATED, severity="note", detail="it went on")
    one, _ = made([90, 60, 50], spec="one", attack=[*own, *later])
    two, _ = made([90, 60, 40], spec="two", attack=[*own, *later], flags=[went_on])
    whole, _ = made([90, 60, 30], spec="whole", attack=autoattack())
    assert protocol(one).strength < protocol(whole).strength == math.inf
    assert order(page(one, two, whole)) == [
        ("autoattack on the first 1,000 test images", ["whole"]),
        ("quick on the first 1,000 test images", ["one", "two"]),
    ]


@pytest.mark.parametrize(
    ("dataset", "n", "why"),
    [
        (images("first:1000"), 1000, None),
        (images("random:7:1000"), 1000, None),
        (images(tuple(range(1000))), 1000, None),
        (images("first:999"), 999, "fewer than 1,000 images"),
        (images(tuple(range(5, 2005))), 2000, "hand-picked images"),
        (images((3, 1, 4)), 3, "hand-picked images"),
        (images("first:500", name="digits"), 500, None),
        (images("first:499", name="digits"), 499, "fewer than 500 images"),
        (images("first:50", name="npz:mine.npz"), 50, None),  # as many as any that is known of
    ],
    ids=str,
)
def test_few_and_hand_picked_images_are_below_the_line(dataset: Any, n: int, why: str | None) -> None:
    record, _ = made([90, 60, 40], n=n, dataset=dataset)
    assert unranked(page(record)) == ({} if why is None else {"runs/act": why})


def test_of_data_from_outside_the_largest_measurement_counts_as_all() -> None:
    many, _ = made([90, 60, 40], n=400, spec="many", dataset=images("first:400", name="mine"))
    few, _ = made([90, 89, 88], n=50, spec="few", dataset=images("first:50", name="mine"))
    picked, _ = made([90, 89, 88], n=500, spec="picked", dataset=images(tuple(range(7, 507)), name="mine"))
    text = page(few, picked, many)
    assert [models for _, models in order(text)] == [["many"]]
    assert unranked(text) == {"few": "fewer than 400 images", "picked": "hand-picked images"}
    assert sections(text)[0].heading == "pgd on the first 400 test images"


@pytest.mark.parametrize(
    ("flag", "shown", "ranked"),
    [
        (Flag(name="square-wins", severity="suspect", eps=12 / 255), "square-wins (suspect at 12/255)", True),
        (Flag(name="square-wins", severity="suspect", eps=8 / 255), "square-wins (suspect at 8/255)", False),
        (Flag(name="square-wins", severity="suspect", eps=4 / 255), "square-wins (suspect at 4/255)", False),
        (Flag(name="square-wins", severity="note", eps=4 / 255), "square-wins (note at 4/255)", True),
        (Flag(name="random", severity="broken"), "random (broken)", False),
    ],
)
def test_a_flag_above_the_ranked_eps_is_shown_and_does_not_decide(flag: Flag, shown: str, ranked: bool) -> None:
    text = page(made([90, 60, 40, 30], eps="0,4/255,8/255,12/255", flags=[flag])[0])
    (part,) = sections(text)
    assert part.below is not ranked and part.rows[0]["flags"] == shown


def test_what_others_images_lowered_is_not_raised_again() -> None:
    """A newer measurement without the file takes the place of a lowered one only where it is as low."""
    fell = np.array([0] * 100 + [1] * 100 + [2] * 200 + [-1] * 600)
    by = np.where(fell > 0, 0, -1)
    by[390:400] = 1
    file = External(name="theirs", sha256="e" * 64, felled=10)
    was = record_of(Fates(fell, by), attack=PGD, engine=engine("3"), external=[file])

    def shown(*newer: Record) -> set[str]:
        board = leaderboard.board([was, *newer], {})
        (table,) = board.tables  # it has no protocol of its own
        assert len(table.ranked) == 1 == len(board.records)
        return {record.id for record in board.records}

    higher, lower, other_file = (
        made([90, 80, top], attack=PGD, engine=engine("4"), external=given)[0]
        for top, given in ((61, ()), (59, ()), (61, [file.model_copy(update={"sha256": "f" * 64, "felled": 0})]))
    )
    with_it = made([90, 80, 61], attack=PGD, engine=engine("4"), external=[file.model_copy(update={"felled": 0})])[0]
    assert shown() == shown(higher) == shown(other_file) == {was.id}
    assert shown(lower) == {lower.id} and shown(with_it) == {with_it.id}


def test_a_measurement_that_a_newer_engine_repeated_is_not_shown_twice() -> None:
    same = model("m")
    old, _ = made([90, 60, 50], model=same, engine=engine("2"), environment=environment("2026-09-01"))
    new, _ = made([90, 60, 48], model=same, engine=engine("10"), environment=environment("2026-08-01"))
    later, _ = made(
        [90, 60, 47], model=same, engine=engine("10"), environment=environment("2026-08-02T01:00:00"), seed=1
    )
    for records, kept in [((old, new), new), ((new, later), later), ((old, new, later), later)]:
        text = page(*records)
        (ranking,) = sections(text)
        assert [row["record"][1:17] for row in ranking.rows] == [kept.id]
        left_out = text.split("measured again since, in the same way: ")[1].splitlines()[0]
        assert all((record.id in left_out) is (record is not kept) for record in records)
        csv = leaderboard.to_csv(leaderboard.board(records, {}).records)
        assert csv.count("\n") == 4 and csv.count(kept.id) == 3


def environment(date: str) -> Environment:
    return Environment(advbench="0.1.0", date=date)


@pytest.mark.parametrize(
    "change",
    [
        {"model": model("m", "b")},
        {"model": model("m", mean=(0.5,))},
        {"model": model("m", arch="wrn")},
        {"model": model("m", code_sha256="c" * 64)},
        {"dataset": images("random:1:1000")},
        {"attack": PGD},
        {"engine": engine(name="pyautoattack")},
    ],
    ids=str,
)
def test_other_measurements_are_no_repetitions(change: dict[str, Any]) -> None:
    old, _ = made([90, 60, 50], model=model("m"), engine=engine("2"))
    new, _ = made([90, 60, 48], **{"model": model("m"), "engine": engine("3"), **change})
    text = page(old, new)
    assert sum(len(models) for _, models in order(text)) == 2 and "Not shown" not in text


def test_a_repetition_without_the_ranked_eps_does_not_hide_the_one_that_has_it() -> None:
    full, _ = made([90, 60, 50], model=model("full"), engine=engine("2"))
    part, _ = made([90, 60], eps="0,4/255", model=model("part"), engine=engine("3"))
    text = page(full, part)
    assert [models for _, models in order(text)] == [["full"]] and "Not shown" in text
    older_part, _ = made([90, 61], eps="0,4/255", model=model("older"), engine=engine("1"))
    newest, _ = made([90, 60, 49], model=model("newest"), engine=engine("4"))
    assert [models for _, models in order(page(full, part, older_part, newest))] == [["newest"]]


def test_supersedes_counts_only_for_the_same_weights_and_images() -> None:
    old, _ = made([90, 70, 50], spec="old", model=model("old"))
    same, _ = made([90, 70, 48], model=model("same"), supersedes=old.id)
    weights, _ = made([90, 70, 47], model=model("other weights", "b"), supersedes=old.id)
    others, _ = made([90, 70, 46], model=model("other images", "c"), supersedes=weights.id,
                     dataset=images("random:1:1000"))  # fmt: skip
    assert (
        "replaced by" in page(old, same) and old.id not in leaderboard.render([old, same])["cifar10-linf.csv"].decode()
    )
    assert [models for _, models in order(page(old, weights))] == [["old", "other weights"]]
    assert "Not shown" not in page(weights, others)


def test_columns_of_name_seed_and_cost() -> None:
    ref = model("runs/x", name="My net | v1", trained=trained(seed=4, passes=22.0))
    record, _ = made([90, 60, 40], model=ref, forwards=30_000, backwards=10_000, seed=9)
    (ranking,) = sections(page(record))
    (row,) = ranking.rows
    assert row["model"] == "My net \\| v1" and "certified" not in row
    assert (row["train seed"], row["train passes"], row["attack passes"]) == ("4", "22", "40")
    assert "images shown" not in row and "updates" not in row  # nothing says how many
    cost = {"images": 49_000, "updates": 392, "forwards": 539_000, "backwards": 539_000}
    counted, _ = made([90, 60, 40], model=model("runs/y", trained=trained(cost=cost)))
    (row,) = sections(page(counted))[0].rows
    assert (row["images shown"], row["updates"], row["train passes"]) == ("49,000", "392", "22")
    uncounted, _ = made([90, 60, 40], model=model("python:Net"))
    (row,) = sections(page(uncounted))[0].rows
    assert (row["train seed"], row["train passes"], row["attack passes"], row["method"]) == ("", "", "", "")


def test_what_is_certified_has_a_column_where_it_is_known(tmp_path: Path) -> None:
    plain, fates = made([90, 60, 40])
    proved = np.where(np.arange(1000) < 250, 2, np.where(fates.fell == 0, -1, 0))
    fates = replace(fates, proved=proved)
    known = record_of(fates)
    path = known.save(tmp_path, fates)
    assert load_record(path)[0] == known and known.id != plain.id and known.question == plain.question
    other, _ = made([90, 60, 39], spec="other")
    rows = sections(page(known, other))[0].rows
    assert [(row["certified"], row["gap"]) for row in rows] == [("25.0", "15.0"), ("", "")]
    assert ",0.9,0.25," in leaderboard.to_csv([known])


def test_a_repetition_without_proofs_does_not_hide_them() -> None:
    _, fates = made([90, 60, 40])
    known = record_of(replace(fates, proved=np.full(1000, -1)), environment=environment("2026-09-01"))
    newer, _ = made([90, 60, 40], environment=environment("2026-09-02"))
    assert [record.id for record in leaderboard.board([known, newer], {}).records] == [known.id]


def test_passes_of_a_training_from_older_records() -> None:
    cost = {"forwards": 1520640, "backwards": 1520640, "seconds": 35.963, "images_per_s": 3844.0}
    assert trained(cost=cost).passes_an_image == pytest.approx(22, abs=0.01)
    assert trained(cost=cost).images_shown == 138_200 and trained(cost=cost).updates is None
    assert trained(cost={**cost, "images": 138240}).passes_an_image == 22
    assert trained(cost=cost, passes=7.5).passes_an_image == 7.5
    for unknown in ({}, {**cost, "seconds": 0}, {**cost, "images_per_s": None}, {"images": 5}):
        assert trained(cost=unknown).passes_an_image is None
    assert trained().passes_an_image is None and trained().images_shown is None


def test_several_seeds_of_a_recipe_have_a_mean_and_a_deviation() -> None:
    def run(name: str, seed: int, at_8: float, **rest: Any) -> Record:
        ref = model(name, f"{len(made_so_far)}", trained=trained(seed=seed, **rest))
        record = made([90 + seed, 60, at_8], model=ref)[0]
        made_so_far.append(record)
        return record

    made_so_far: list[Record] = []
    run("runs/a-s0", 0, 50, cost={"images": 580_000, "updates": 4_530})
    run("runs/a-s1", 1, 52)
    run("runs/a-s2", 2, 54)
    run("runs/b-s0", 0, 40)  # another recipe: alone
    run("one", 0, 30, series_sha256="1" * 64)
    run("two", 1, 32, series_sha256="1" * 64)
    run("runs/a-s3", 3, 10, series_sha256="2" * 64)  # another recipe, in spite of its name
    first = sections(page(*made_so_far))[0].rows
    assert [(row["images shown"], row["updates"]) for row in first] == [("580,000", "4,530"), ("", "")]
    assert [(row["models"], row["seeds"], row["clean"], row["8/255"]) for row in first] == [
        ("runs/a", "0, 1, 2", "91.0 ± 1.0", "52.0 ± 2.0"),
        ("one, two", "0, 1", "90.5 ± 0.7", "31.0 ± 1.4"),
    ]
    assert not any("models" in row for part in sections(page(*made_so_far[2:5])) for row in part.rows)


def test_a_series_is_of_one_file_and_of_the_last_measurement() -> None:
    def run(spec: str, seed: int, at_8: float, date: str = "2026-08-01") -> Record:
        ref = model(spec, f"{int(at_8) % 16:x}", trained=trained(seed=seed, series_sha256="1" * 64))
        return made([90, 60, at_8], model=ref, environment=environment(date))[0]

    folders = [run("runs/a-s0", 0, 50), run("runs/a-s1", 1, 52)]
    last = [run("runs/a-s1/last.safetensors", 1, 56), run("runs/a-s0/last.safetensors", 0, 58)]
    again = run("runs/a-s1", 1, 48, "2026-08-02")
    natural = run("runs/a-s2/parts/natural.safetensors", 2, 5)
    rows = sections(page(*folders, *last, again, natural))[0].rows
    assert [(row["seeds"], row["8/255"]) for row in rows] == [("0, 1", "57.0 ± 1.4"), ("0, 1", "49.0 ± 1.4")]


def test_each_split_has_its_own_size() -> None:
    test = made([90, 60], n=500, eps="0,0.1", dataset=images("first:500", name="digits"), spec="a")[0]
    ref = DatasetRef(name="digits", split="train", indices="first:1000", images_sha256="c" * 64)
    train = made([95, 70], n=1000, eps="0,0.1", dataset=ref, spec="b")[0]
    assert unranked(page(test, train)) == {}
    board = leaderboard.board([test, train], {})
    data = board_data("digits-linf", board, {test.id: "a", train.id: "b"}, {})
    assert [order["below"] for table in data["tables"] for order in table["orders"]] == [[], []]


def test_two_texts_of_one_eps_are_one_column() -> None:
    one, two = made([90, 60, 40], spec="a")[0], made([90, 60, 40], eps="0,0.01568627451,8/255", spec="b")[0]
    above = sections(page(one, two))[0]
    assert [name for name in above.rows[0] if name[0].isdigit()] == ["4/255", "8/255"]


def test_notices_retire_and_rename_and_the_record_stays_as_it_is(tmp_path: Path) -> None:
    one, fates = made([90, 60, 50], spec="one")
    two, two_fates = made([90, 60, 40], spec="two")
    path = leaderboard.publish(one, fates, tmp_path).path
    other = leaderboard.publish(two, two_fates, tmp_path).path
    before = path.read_bytes(), path.with_suffix(".npz").read_bytes()

    leaderboard.rename(tmp_path, two.id[:6], "A <better> name")
    text = (tmp_path / "cifar10-linf.md").read_text()
    assert [models for _, models in order(text)] == [["one", "A &lt;better&gt; name"]]
    leaderboard.retire(tmp_path, one.id, "trained on test | images")
    text = (tmp_path / "cifar10-linf.md").read_text()
    assert [models for _, models in order(text)] == [["A &lt;better&gt; name"]]
    assert f"- retired: [{one.id}](records/cifar10/linf/{one.id}.json), one: trained on test \\| images" in text
    assert one.id not in (tmp_path / "cifar10-linf.csv").read_text()
    assert leaderboard.check(tmp_path) == []
    assert (path.read_bytes(), path.with_suffix(".npz").read_bytes()) == before
    records, damaged = load_records(tmp_path / "records")
    assert [record.id for record in records] == sorted([one.id, two.id]) and damaged == []

    leaderboard.retire(tmp_path, two.id, "too")  # keeps the name
    assert load_notices(tmp_path)[0][two.id].name == "A <better> name"
    text = (tmp_path / "cifar10-linf.md").read_text()
    assert order(text) == [] and "A &lt;better&gt; name: too" in text and leaderboard.check(tmp_path) == []
    for notice in tmp_path.rglob("*.notice.json"):
        notice.unlink()
    leaderboard.build(tmp_path / "records", tmp_path)
    assert [models for _, models in order((tmp_path / "cifar10-linf.md").read_text())] == [["one", "two"]]
    assert other.is_file()


def test_a_retired_record_hides_and_replaces_nothing(tmp_path: Path) -> None:
    old, _ = made([90, 60, 50], model=model("m"), engine=engine("2"))
    new, fates = made([90, 60, 48], model=model("m"), engine=engine("3"), supersedes=old.id)
    notice = write_notice(new.save(tmp_path, fates), retired="wrong")
    notices, _ = load_notices(tmp_path)
    assert notice.name == f"{new.id}.notice.json"
    text = page(old, new, notices=notices)
    assert f"[{old.id}]" in text.split("## Not shown")[0] and "measured again" not in text


DAMAGE: dict[str, Any] = {
    "edited": lambda text: text.replace("because", "by mistake"),
    "unsealed": lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "seal"}),
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "deep": lambda text: "[" * 100_000,
    "more": lambda text: json.dumps({**json.loads(text), "more": 1}),
}


@pytest.mark.parametrize("odd", ["\udcff", " "])
def test_what_no_notice_can_say_is_refused(tmp_path: Path, odd: str) -> None:
    record, fates = made([90, 60, 50])
    path = record.save(tmp_path, fates)
    with pytest.raises(UserError, match=r"notice\.json: name: it must be"):
        write_notice(path, name=odd)
    assert not [*path.parent.glob("*.notice.json")]


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_notices_are_reported_and_change_nothing(tmp_path: Path, how: str) -> None:
    record, fates = made([90, 60, 50])
    path = record.save(tmp_path, fates)
    notice = write_notice(path, retired="because")
    notice.write_text(DAMAGE[how](notice.read_text()))
    built = leaderboard.build(tmp_path / "records", tmp_path)
    assert [damage.path for damage in built.damaged] == [notice]
    assert [models for _, models in order((tmp_path / "cifar10-linf.md").read_text())] == [["runs/act"]]
    assert [damage.path for damage in leaderboard.check(tmp_path)] == [notice]
    with pytest.raises(UserError, match=r"notice"):
        write_notice(path, name="x")


def test_a_notice_without_its_record_is_reported(tmp_path: Path) -> None:
    record, fates = made([90, 60, 50])
    notice = write_notice(record.save(tmp_path, fates), retired="because")
    elsewhere = notice.with_name(f"{'0' * 16}.notice.json")
    notice.rename(elsewhere)
    found = load_notices(tmp_path)
    assert found == ({}, [Damage(elsewhere, f"{elsewhere} is about record {record.id}, which is not beside it")])


def test_ids_by_their_first_digits(tmp_path: Path) -> None:
    for spec in range(20):
        record, fates = made([90, 60, 50], spec=str(spec))
        record.save(tmp_path, fates)
    ids = [record.id for record in load_records(tmp_path / "records")[0]]
    with pytest.raises(UserError, match="begins several ids: choose from"):
        leaderboard.retire(tmp_path, next(one[0] for one in ids if [o[0] for o in ids].count(one[0]) > 1), "x")
    for text in ("g", "", ids[0] + "0"):
        with pytest.raises(UserError, match=r"has no record .* choose from .* and 15 more in"):
            leaderboard.retire(tmp_path, text, "x")
    assert list(tmp_path.rglob("*.notice.json")) == []
