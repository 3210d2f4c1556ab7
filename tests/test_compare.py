"""Comparisons: the measurements chosen, the tests, the verdict and the reports."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tomli_w
from measurements import fallen, made, side

from advbench import statistics
from advbench.compare import (
    Measured,
    Refused,
    Side,
    cells,
    compare,
    explain,
    find_record,
    many,
    matrix,
    plot,
    read_side,
    to_csv,
    to_json,
    to_junit,
    to_markdown,
    verdict,
    whereabouts,
)
from advbench.compare.matrix import names
from advbench.compare.sides import align
from advbench.errors import UserError
from advbench.record import AttackRef, DatasetRef, Engine, Environment, Flag, Record, Trained


def saved(folder: Path, unit: Measured) -> Path:
    return unit.record.save(folder, unit.fates)


BASE = side("base", made(fallen([900, 700, 500]), spec="base"))


def test_rows_are_the_paired_differences() -> None:
    new = side("new", made(fallen([890, 680, 450]), spec="new"))
    found = compare([BASE, new])
    rows = {row.quantity: row for row in found.rows}
    assert list(rows) == ["clean", "acc@4/255", "acc@8/255", "auc"]
    row = rows["acc@8/255"]
    assert (row.baseline, row.value, row.n) == (0.5, 0.45, 1000)
    assert row.difference == pytest.approx(-0.05)
    assert row.p == row.p_holm == statistics.mcnemar(50, 0)  # all 50 discordant samples fell
    assert row.low < -0.05 < row.high < 0
    assert rows["auc"].difference == pytest.approx((-0.01 / 2 - 0.02 - 0.05 / 2) / 2)
    assert rows["auc"].value == pytest.approx(new.units[0].record.auc)
    assert "retrain" in " ".join(found.notes) or "trained again" in " ".join(found.notes)
    assert found.gate is None and cells(row)[2:] == ("50.0", "45.0", "-5.0", "-6.5 to -3.8", "<0.001")


def test_median_norm_is_compared_where_both_have_it() -> None:
    rng = np.random.default_rng(0)
    norm = rng.uniform(0.001, 8 / 255, 1000)
    fell = np.where(norm <= 4 / 255, 1, 2)
    weaker = norm * 0.9
    sides = [
        side("base", made(fell, norm, spec="base")),
        side("new", made(np.where(weaker <= 4 / 255, 1, 2), weaker, spec="new")),
    ]
    row = compare(sides).rows[-1]
    assert row.quantity == "median_norm"
    assert row.value == pytest.approx(0.9 * np.median(norm)) == sides[1].units[0].record.median_norm
    assert row.p < 0.001 and row.low <= row.difference <= row.high
    assert cells(row)[3] == f"{row.value:.4g}"


def test_the_reports_say_that_p_is_adjusted() -> None:
    others = [side(name, made(fallen([900, 700, 480]), spec=name)) for name in "ab"]
    assert "adjusted for 2 models (Holm)" in to_markdown(compare([BASE, *others]))
    assert "Holm" not in to_markdown(compare([BASE, others[0]]))


def test_holm_over_the_models() -> None:
    news = [side(f"m{lost}", made(fallen([900, 700, 500 - lost]), spec=f"m{lost}")) for lost in (8, 9, 40)]
    rows = {row.model: row for row in compare([BASE, *news]).rows if row.quantity == "acc@8/255"}
    raw = [statistics.mcnemar(lost, 0) for lost in (8, 9, 40)]
    assert [rows[f"m{lost}"].p for lost in (8, 9, 40)] == raw
    assert [rows[f"m{lost}"].p_holm for lost in (8, 9, 40)] == statistics.holm(raw)


def test_the_intervals_are_bonferronis_over_the_models() -> None:
    news = [side(f"m{lost}", made(fallen([900, 700, 500 - lost]), spec=f"m{lost}")) for lost in (8, 9, 40)]
    for others in (news[:1], news):
        found = compare([BASE, *others])
        level = 1 - 0.05 / len(others)
        rows = {row.model: row for row in found.rows if row.quantity == "acc@8/255"}
        for lost in (8, 9, 40)[: len(others)]:
            row = rows[f"m{lost}"]
            assert row.level == pytest.approx(level)
            assert (row.low, row.high) == statistics.tango(0, lost, 1000, row.level)
        said = f"hold for all {len(others)} together with 95 % (Bonferroni: {100 * level:.4g} % each)"
        assert (said in to_markdown(found)) == (len(others) > 1)
        assert {row["level"] for row in json.loads(to_json(found).splitlines()[0])["rows"]} == {row.level}
        assert {float(line["level"]) for line in csv.DictReader(io.StringIO(to_csv(found)))} == {row.level}


def test_many_models_are_one_matrix() -> None:
    news = [side(f"m{lost}", made(fallen([900, 700, 500 - lost]), spec=f"m{lost}", name=f"model {lost}"))
            for lost in (0, 6, 9, 40)]  # fmt: skip
    assert not many(compare([BASE, *news[:3]])) and "0.0" in to_markdown(compare([BASE, *news[:3]]))
    found = compare([BASE, *news])
    assert many(found)
    header, (baseline, *rows) = matrix(found)
    assert header == ["model", "clean", "4/255", "8/255", "auc"]
    assert [cell.strip() for cell in baseline[1:]] == ["90.0", "70.0", "50.0", "70.0"]
    assert [row[0] for row in rows] == ["model 0", "model 6", "model 9", "model 40"]
    assert [row[3] for row in rows] == ["+0.0 ", "-0.6 ", "-0.9*", "-4.0*"]  # p of 6 losses is 1/32, times 2 by Holm
    page = to_markdown(found)
    assert "\n| model 40 | +0.0 | +0.0 | -4.0\\* | -1.0\\* |\n" in page and "differences to it; \\* p" in page
    assert any(note.startswith("model 40: m40") or note.startswith("model 40: pgd") for note in found.notes)


def test_no_seed_is_in_the_name_of_several() -> None:
    """Where another model of the method is told apart by its seed."""
    seeds = [
        made(fallen([900, 700, 500 - seed]), spec=f"s{seed}", trained=Trained(method="trades", norm="linf", seed=seed))
        for seed in range(3)
    ]
    arch = seeds[0].record.model.arch
    assert names([side("two", *seeds[:2]), side("one", seeds[2])]) == [
        f"trades {arch} (2 models)", f"trades {arch}, seed 2",
    ]  # fmt: skip


def test_other_images_are_refused_or_compared_unpaired() -> None:
    others = DatasetRef(name="cifar10", split="test", indices="random:7:500", images_sha256="c" * 64)
    new = side("new", made(fallen([450, 300, 200], 500), spec="new", dataset=others))
    with pytest.raises(UserError, match=r"different images \(cifar10, random:7:500; cifar10, first:1000\)"):
        compare([BASE, new])
    rows = {row.quantity: row for row in compare([BASE, new], unpaired=True).rows}
    assert rows["acc@8/255"].test == "Fisher's exact"
    assert rows["acc@8/255"].p == statistics.unpaired_accuracies((500, 1000), (200, 500)).p
    assert rows["auc"].test == "permutation" and rows["auc"].p < 0.01


def test_other_norms_are_refused() -> None:
    with pytest.raises(UserError, match=r"different norms \(l2; linf\)"):
        compare([BASE, side("new", made(fallen([900, 700, 500]), norm="l2", spec="new"))], unpaired=True)


@pytest.mark.parametrize("n", [1, 2])
def test_the_smallest_sets(n: int) -> None:
    """One or two images say nothing, and nothing breaks."""
    sizes = np.full(n, 0.01)
    sides = [side("a", made([2] * n, sizes * 2, spec="a")), side("b", made([1] * n, sizes, spec="b"))]
    for unpaired in (False, True):
        found = compare(sides, fail_if="acc@4/255 < 50 and median_norm < baseline", unpaired=unpaired, strict=True)
        assert all(row.p > 0.1 for row in found.rows)
        assert found.gate is not None and found.gate.failed


def test_nothing_to_compare() -> None:
    for sides in ([], [BASE]):
        with pytest.raises(UserError, match="nothing to compare"):
            compare(sides)
    with pytest.raises(UserError, match="alpha 5"):
        compare([BASE, side("new", made(fallen([900, 700, 1]), spec="new"))], alpha=5)


def test_only_common_eps_are_compared_and_auc_is_taken_from_them() -> None:
    new = side("new", made(fallen([900, 700, 500, 100]), spec="new", eps="0,4/255,8/255,16/255"))
    found = compare([BASE, new])
    assert [row.quantity for row in found.rows] == ["clean", "acc@4/255", "acc@8/255", "auc"]
    assert found.rows[-1].difference == 0
    assert any("auc is taken over 0, 4/255, 8/255 alone" in note for note in found.notes)
    far = side("far", made(fallen([100]), spec="far", eps="16/255"))
    assert [row.quantity for row in compare([BASE, far]).rows] == ["clean"]


def test_a_recipe_trained_again_into_its_folder_is_one_model() -> None:
    """Overwritten weights and other files of a run do not count as models beside the run's present weights."""

    def of(spec: str, weights: str, robust: int, day: int, recipe: str = "a") -> Measured:
        trained = Trained(method="act", norm="linf", eps=8 / 255, recipe_sha256=recipe * 64)
        unit = made(fallen([900, 800, robust]), spec=spec, trained=trained, date=f"2026-08-0{day}T00:00:00+00:00")
        model = unit.record.model.model_copy(update={"weights_sha256": weights * 64})
        return Measured(unit.record.model_copy(update={"model": model}), unit.fates, unit.path)

    base = side("base", of("runs/b", "1", 724, 1))
    new = side(
        "new",
        of("runs/a", "2", 724, 1),
        of("runs/a", "3", 600, 2),
        of("runs/a/last.safetensors", "4", 730, 3),
        of("runs/a/parts/natural.safetensors", "5", 740, 3),
    )
    found = compare([base, new], fail_if="acc@8/255 < baseline - 1")
    row = next(row for row in found.rows if row.quantity == "acc@8/255")
    assert (row.value, row.n) == (0.6, 1000) and found.gate is not None and found.gate.failed
    alone = compare([base, side("new", of("runs/a/last.safetensors", "4", 730, 3))])
    assert next(row for row in alone.rows if row.quantity == "acc@8/255").value == 0.73
    seeds = compare([base, side("new", of("runs/a", "2", 724, 1), of("runs/c", "3", 600, 2, recipe="c"))])
    assert next(row for row in seeds.rows if row.quantity == "acc@8/255").value == pytest.approx(0.662)


def test_another_recipe_trained_into_the_folder_replaces_the_first() -> None:
    def of(robust: int, weights: str, day: int, recipe: str) -> Measured:
        trained = Trained(method="act", norm="linf", eps=8 / 255, recipe_sha256=recipe * 64, series_sha256=recipe * 64)
        unit = made(fallen([900, 800, robust]), spec="runs/a", trained=trained, date=f"2026-08-0{day}T00:00:00+00:00")
        model = unit.record.model.model_copy(update={"weights_sha256": weights * 64})
        return Measured(unit.record.model_copy(update={"model": model}), unit.fates, unit.path)

    found = compare([BASE, side("runs/a", of(500, "1", 1, "a"), of(300, "2", 2, "b"))], fail_if="acc@8/255 < 40")
    assert next(row for row in found.rows if row.quantity == "acc@8/255").value == 0.3
    assert found.gate is not None and found.gate.failed


def test_trainings_that_differ_in_their_recipe_are_no_seeds_of_one() -> None:
    def of(spec: str, series: str | None) -> Measured:
        trained = Trained(method="trades", norm="linf", eps=8 / 255, series_sha256=series)
        return made(fallen([900, 700, 500]), spec=spec, trained=trained)

    for one, other in (("1" * 64, "1" * 64), (None, None), ("1" * 64, None)):  # older records do not tell
        assert compare([BASE, side("sweep", of("runs/b1", one), of("runs/b6", other))]).rows
    with pytest.raises(UserError, match=r"more than their seed \(runs/b1, runs/b6\)"):
        compare([BASE, side("sweep", of("runs/b1", "1" * 64), of("runs/b6", "2" * 64))])


def test_models_that_differ_by_more_than_the_seed_cannot_be_one_side() -> None:
    mixed = side(
        "mixed",
        made(fallen([900, 700, 500]), spec="m1"),
        made(fallen([900, 700, 400]), spec="m2", trained=Trained(method="trades", norm="linf", eps=8 / 255)),
    )
    with pytest.raises(UserError, match=r"more than their seed \(m1, m2\)"):
        compare([BASE, mixed])


@pytest.mark.parametrize("change", [{"settings": {"quantize": "conv1:2"}}, {"arch": "small_cnn_16"}])
def test_the_same_weights_in_two_architectures_or_settings_are_two_models(change: dict[str, Any]) -> None:
    one = made(fallen([900, 700, 500]), spec="w.pt")
    model = one.record.model.model_copy(update=change)
    two = made(fallen([900, 700, 300]), spec="w.pt", model=model, date="2026-07-01T00:00:00+00:00")
    with pytest.raises(
        UserError, match=rf"more than their seed \({', '.join(sorted(u.record.id for u in (one, two)))}\)"
    ):
        compare([BASE, side("w.pt", one, two)])


def test_a_list_of_one_model_in_two_states_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = made(fallen([900, 700, 500]), spec="w.pt", trained=None)
    weights = old.record.model.model_copy(update={"weights_sha256": "c" * 64})
    new = made(fallen([900, 700, 300]), model=weights, date="2026-09-01T00:00:00+00:00")
    for unit in (old, new):
        unit.record.save(Path("leaderboards"), unit.fates)
    assert len(align([read_side("w.pt")])[0].units) == 1
    with pytest.raises(UserError, match=rf"the newest counts: leave out w.pt \({old.record.id[:8]}\)"):
        read_side(f"{old.record.id},{new.record.id}")


def test_of_several_measurements_the_newest_made_alike_count() -> None:
    square = [AttackRef(name="square", version="1")]
    base = side(
        "base",
        made(fallen([900, 700, 500]), spec="base"),
        made(fallen([900, 700, 501]), spec="base", seed=1, date="2026-08-02T00:00:00+00:00"),
        made(fallen([900, 800, 700]), spec="base", attack=square, date="2026-08-09T00:00:00+00:00"),
    )
    new = side("new", made(fallen([900, 700, 490]), spec="new"))
    row = next(row for row in compare([base, new]).rows if row.quantity == "acc@8/255")
    assert row.baseline == 0.501  # by pgd, as the other; not by square, though that is newer
    other = side("new", made(fallen([900, 700, 490]), spec="new", attack=[AttackRef(name="fab", version="1")]))
    found = compare([base, other])
    assert found.rows[0].model == "new" and found.caveat.endswith("new from base: different attacks (fab; square)")
    assert next(row for row in found.rows if row.quantity == "acc@8/255").baseline == 0.7


def test_an_old_measurement_of_weights_that_were_trained_again_does_not_stand_for_the_new_ones() -> None:
    """The old weights were measured as the baseline was. The new ones, which are far worse, by a newer engine."""

    def of(weights: str, robust: int, engine: str, day: int) -> Measured:
        trained = Trained(method="act", norm="linf", eps=8 / 255, recipe_sha256="a" * 64)
        made_by = Engine(name="advbench", version=engine, slots=64, precision="fp32")
        date = f"2026-08-0{day}T00:00:00+00:00"
        unit = made(fallen([900, 800, robust]), spec="runs/a", trained=trained, date=date, engine=made_by)
        model = unit.record.model.model_copy(update={"weights_sha256": weights * 64})
        return Measured(unit.record.model_copy(update={"model": model}), unit.fates, unit.path)

    base, new = side("base", of("1", 724, "1", 1)), side("runs/a", of("2", 724, "1", 2), of("3", 100, "2", 3))
    with pytest.raises(Refused, match=r"different engines \(advbench 2; advbench 1\)"):
        compare([base, new], fail_if="acc@8/255 < baseline - 1")
    found = compare([base, new], fail_if="acc@8/255 < baseline - 1", different_attacks=True)
    assert found.gate is not None and found.gate.failed


def test_models_are_called_by_the_names_that_they_were_given() -> None:
    base = side("runs/a", made(fallen([900, 700, 500]), spec="a", name="mine"))
    new = side("runs/b", made(fallen([900, 700, 400]), spec="b", name="mine"))
    other = side("runs/c", made(fallen([900, 700, 300]), spec="c"))
    found = compare([base, new, other])
    assert found.baseline == "mine" and found.models == [f"mine ({new.units[0].record.id[:8]})", "runs/c"]
    assert [row.value for row in found.rows if row.quantity == "acc@8/255"] == [0.4, 0.3]


def test_doubts_are_noted() -> None:
    flags = [Flag(name="zero-gradient", severity="broken", eps=4 / 255), Flag(name="random", severity="suspect")]
    new = made(fallen([900, 900, 900]), spec="runs/new", flags=flags)
    notes = compare([BASE, side("mine", new)]).notes
    said = "The numbers of mine are in doubt: flagged zero-gradient (broken at 4/255), random (suspect)."
    assert said in notes


# --- which records a name stands for --------------------------------------------------------------------


def test_sides_by_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unit = made(fallen([900, 700, 500]), spec="runs/act")
    path = saved(Path("runs/act"), unit)
    zoo = made(fallen([900, 700, 400]), spec="robustbench:Some2020")
    listed = saved(Path("leaderboards"), zoo)
    for text in ("runs/act", "runs/act/", str(path), "runs", f"runs/act/{path.stem[:8]}"):
        assert [one.record.id for one in read_side(text).units] == [unit.record.id], text
    for text in ("robustbench:Some2020", listed.stem[:6], f"leaderboards/{listed.stem[:4]}", listed.stem):
        assert [one.record.id for one in read_side(text).units] == [zoo.record.id], text
    both = read_side(f"runs/act, {listed.stem}")
    assert {one.record.id for one in both.units} == {unit.record.id, zoo.record.id}
    assert read_side(listed.stem).label == f"robustbench:Some2020 ({listed.stem[:8]})"
    assert read_side("runs/act").label == "runs/act"
    assert find_record(listed.stem[:5]) == listed and find_record(str(path)) == path


def test_a_run_that_was_only_published_is_found_in_the_leaderboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/act").mkdir(parents=True)
    unit = made(fallen([900, 700, 500]), spec="runs/act")
    saved(Path("leaderboards"), unit)
    assert read_side("runs/act/").units[0].record.id == unit.record.id
    saved(Path("LB"), made(fallen([900, 700, 501]), spec="runs/other"))
    assert read_side("runs/other", places=(Path("LB"),)).units[0].record.curve[2].robust == 501


def test_seeds_of_a_sweep_by_their_folder(tmp_path: Path) -> None:
    for seed in range(3):
        saved(tmp_path / "sweep" / f"s{seed}", made(fallen([900, 700, 500 + seed]), spec=f"sweep/s{seed}"))
    assert len(read_side(str(tmp_path / "sweep")).units) == 3


def test_weights_that_are_measured_again_after_others_are_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def of(robust: int, weights: str, day: int) -> Measured:
        unit = made(fallen([900, 700, robust]), spec="w.pt", trained=None)
        model = unit.record.model.model_copy(update={"weights_sha256": weights * 64})
        return made(fallen([900, 700, robust]), model=model, date=f"2026-09-0{day}T00:00:00+00:00")

    def newest() -> list[int]:
        return [unit.record.curve[2].robust for unit in read_side("w.pt").units]

    for robust, weights, day, notices in ((500, "a", 1, 0), (300, "b", 2, 0), (500, "a", 3, 1), (500, "a", 4, 1)):
        saved(Path("leaderboards"), of(robust, weights, day))
        assert newest() == [robust] and len([*Path().rglob("*.notice.json")]) == notices
    saved(Path("leaderboards"), of(300, "b", 5))
    assert newest() == [300]


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(Path(), made(fallen([900, 700, 500]), spec="w.pt"))
    for text in ("", " "):
        for look in (read_side, find_record):
            with pytest.raises(UserError, match=f"'{text}' names nothing: write a run folder"):
                look(text)


def test_a_damaged_record_of_a_spec_is_no_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    board = Path("leaderboards")
    saved(board, made(fallen([900, 700, 500]), spec="w.pt"))
    newer = saved(board, made(fallen([900, 700, 300]), spec="w.pt", date="2026-09-01T00:00:00+00:00"))
    saved(board, made(fallen([900, 700, 400]), spec="other.pt"))
    newer.with_suffix(".npz").unlink()
    with pytest.raises(UserError, match=newer.stem):
        read_side("w.pt")
    assert len(read_side("other.pt").units) == 1
    newer.write_text("{")  # it may be of any model
    with pytest.raises(UserError, match=newer.stem):
        read_side("other.pt")


def test_names_without_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/empty").mkdir(parents=True)
    Path("model.safetensors").write_bytes(b"x")
    for text in ("nothing", "runs/empty", "abcd1234", ",", "", "model.safetensors", "../..", "leaderboards/abcd"):
        with pytest.raises(UserError) as caught:
            read_side(text)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="advbench evaluate --model runs/empty"):
        read_side("runs/empty")
    with pytest.raises(UserError, match="no record 'zz'"):
        find_record("zz")
    for look in (read_side, find_record):
        with pytest.raises(UserError, match=r"there is no file '?nope.json"):
            look("nope.json")


def test_a_folder_of_records_is_no_record_and_names_them(tmp_path: Path) -> None:
    paths = [saved(tmp_path, made(fallen([900, 700, robust]), spec="a")) for robust in (500, 501)]
    with pytest.raises(UserError, match="of which one has to be named") as caught:
        find_record(str(tmp_path))
    assert all(str(path) in str(caught.value) for path in paths)


def test_an_ambiguous_id_lists_the_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("abcd000000000001", "abcd000000000002"):
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records" / f"{name}.json").write_text("{}")
    with pytest.raises(UserError, match="abcd000000000001, abcd000000000002"):
        read_side("abcd")


def test_damaged_and_superseded_records_of_a_run(tmp_path: Path) -> None:
    old = made(fallen([900, 700, 500]), spec="a")
    new = made(fallen([900, 700, 499]), spec="a", supersedes=old.record.id)
    paths = [saved(tmp_path, unit) for unit in (old, new)]
    assert [unit.record.id for unit in read_side(str(tmp_path)).units] == [new.record.id]
    paths[0].write_text("{")
    with pytest.raises(UserError, match=paths[0].stem):
        read_side(str(tmp_path))


# --- reports --------------------------------------------------------------------------------------------


@pytest.fixture
def regression() -> Any:
    new = side("runs/new", made(fallen([890, 680, 450]), spec="new"))
    fine = side("runs/fine", made(fallen([900, 700, 501]), spec="fine"))
    return compare([BASE, new, fine], fail_if="acc@8/255 < baseline - 0.5 or clean < 80")


def test_markdown(regression: Any) -> None:
    text = to_markdown(regression)
    assert text.startswith("### Regression: runs/new against base\n")
    assert verdict(regression) in text
    assert (
        "- **failed**: runs/new: acc&#64;&#8288;8/255 &lt; baseline - 0.5: 45 is below 49.5, a drop of 5 (3.668 to "
        "6.782); a drop is significant from 0.6 on; one-sided p &lt;0.001\n" in text
    )
    assert "- passed: runs/fine:" in text and "trained again" in text
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("| runs/")]
    assert [len(row) for row in rows] == [9] * 8 + [7] * 2  # the differences, then the curves
    assert "| model | curve | 0 | 4/255 | 8/255 |\n" in text and "| base | █▆▅ | 90.0 | 70.0 | 50.0 |\n" in text
    assert text.index("### ") < text.index("| quantity") < text.index("| curve") < text.index("Protocol: 1,000 images")


def test_markdown_says_the_flags_and_the_protocols() -> None:
    doubt = Flag(name="random", severity="suspect", eps=None, detail="12 of 64 | differ")
    new = side(
        "new",
        made(
            fallen([900, 700, 490]),
            spec="new",
            flags=(doubt,),
            attack=(AttackRef(name="pgd", version="9", settings={"steps": 7}),),
        ),
    )
    with pytest.raises(Refused) as refused:
        compare([BASE, new], fail_if="acc@8/255 < baseline - 0.5", different_attacks=True)
    text = to_markdown(refused.value.comparison)
    assert (
        text.startswith("### Not measured alike") and "No verdict against base: numbers that cannot be believed" in text
    )
    assert "- **new: random (suspect): 12 of 64 \\| differ**\n" in text
    assert "| new | █▆▄ | 90.0 | 70.0 | 49.0 |\n" in text
    assert "\nProtocol of base: 1,000 images" in text and "pgd 9 (steps 7); engine" in text


def test_csv_and_json_hold_the_rows(regression: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(regression))))
    assert len(rows) == 8 + 4 and not any(row["gate"] for row in rows[:8])
    assert [float(row["difference"]) for row in rows[:8]] == [row.difference for row in regression.rows]
    columns = ("model", "quantity", "value", "bound", "gate", "failed")
    assert [tuple(row[name] for name in columns) for row in rows[8:]] == [
        ("runs/new", "acc@8/255", "0.45", "0.495", "acc@8/255 < baseline - 0.5", "true"),
        ("runs/new", "clean", "0.89", "0.8", "clean < 80", "false"),
        ("runs/fine", "acc@8/255", "0.501", "0.495", "acc@8/255 < baseline - 0.5", "false"),
        ("runs/fine", "clean", "0.9", "0.8", "clean < 80", "false"),
    ]  # fmt: skip
    lines = [json.loads(line) for line in to_json(regression).splitlines()]
    assert [(line["model"], line["gate"]["failed"]) for line in lines] == [("runs/new", True), ("runs/fine", False)]
    assert [row["p"] for line in lines for row in line["rows"]] == [row.p for row in regression.rows]


def test_junit(regression: Any) -> None:
    suite = ElementTree.fromstring(to_junit(regression))
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "4", "1")
    assert "against no drop" in to_markdown(regression)
    cases = suite.findall("testcase")
    assert [(case.get("classname"), case.find("failure") is not None) for case in cases] == [
        ("runs/new", True), ("runs/new", False), ("runs/fine", False), ("runs/fine", False),
    ]  # fmt: skip
    assert cases[0].get("name") == "acc@8/255 < baseline - 0.5"
    without = ElementTree.fromstring(to_junit(compare([BASE, side("n", made(fallen([900, 700, 400]), spec="n"))])))
    assert (without.get("tests"), without.get("failures")) == ("4", "0")


@pytest.mark.parametrize(
    "name", ["=1+1", "a|b", "x\n\n# heading", "<b>", "\x1b[31m", "\x00", "]]>", "&amp;", '"', "@all", "`", "\ud800"]
)
def test_names_inject_nothing(name: str) -> None:
    found = compare(
        [Side(name, BASE.units), side(f"{name}2", made(fallen([900, 700, 400]), spec="n"))], fail_if="clean < 5"
    )
    for report in (to_csv, to_markdown, to_junit, to_json):
        text = report(found)
        text.encode()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    assert {len(row) for row in csv.reader(io.StringIO(to_csv(found)))} == {21}
    assert not any(cell.startswith("=") for row in csv.reader(io.StringIO(to_csv(found))) for cell in row)
    assert ElementTree.fromstring(to_junit(found)).get("tests") == "2"
    table = [line for line in to_markdown(found).splitlines() if line.startswith("|")]
    assert [len(re.split(r"(?<!\\)\|", row)) for row in table] == [9] * 6 + [7] * 4
    assert "<b>" not in to_markdown(found)


def test_plot(tmp_path: Path, regression: Any) -> None:
    for name in ("one.svg", "two.svg", "three.PNG", "four.pdf"):
        plot(regression, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    ElementTree.parse(tmp_path / "one.svg")
    with pytest.raises(UserError, match=r"unknown kind of figure '\.jpg'"):
        plot(regression, tmp_path / "x.jpg")
    seeds = [
        side(name, *(made(fallen([900, 700, start + i]), spec=f"{name}{i}") for i in range(3)))
        for name, start in (("a", 500), ("b", 480))
    ]
    plot(compare(seeds), tmp_path / "seeds.svg")
    assert (tmp_path / "seeds.svg").exists()


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "$x^2$", "\x1b[31m", "]]>", "_nolegend_", "\ud800", "a\nb"]
)
def test_figures_draw_any_name(tmp_path: Path, name: str) -> None:
    plot(compare([BASE, side(name, made(fallen([900, 700, 400]), spec="n"))]), tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    drawn = {str(node.tag).rpartition("}")[2] for node in ElementTree.fromstring(text).iter()}
    assert not drawn & {"script", "image", "foreignObject", "a"}


# --- the chain ------------------------------------------------------------------------------------------


RECIPE = """
format = 1
seed = 0
dataset = "digits"
[method]
name = "act"
[model]
arch = "small_cnn"
[threat]
norm = "linf"
eps = "8/255"
"""


def _run(folder: Path) -> tuple[Path, Measured]:
    from advbench.recipe import Recipe

    folder.mkdir(parents=True)
    recipe = Recipe.read(tomllib.loads(RECIPE))
    (folder / "recipe.toml").write_text(recipe.to_toml())
    (folder / "run.json").write_text("{}")
    trained = Trained(method="act", norm="linf", eps=8 / 255, recipe_sha256=recipe.sha256)
    unit = made(fallen([90, 70, 50], 100), spec=str(folder), trained=trained)
    return saved(folder, unit), unit


def test_the_chain_of_a_sound_record(tmp_path: Path) -> None:
    path, _ = _run(tmp_path / "act")
    chain = explain(
        path, weights=lambda record: record.model.weights_sha256, images=lambda record: record.dataset.images_sha256
    )
    states = {link.name: link.state for link in chain}
    assert states == {
        "record": "verified", "weights": "verified", "recipe": "verified", "images": "verified",
        "attacks": "verified", "command": "not checked", "version": "verified",
    }  # fmt: skip
    assert "advbench evaluate" in next(link.says for link in chain if link.name == "command")
    assert {link.state for link in explain(path) if link.name in ("weights", "images")} == {"not checked"}


def test_a_recipe_stays_verified_when_recipes_come_to_have_more_fields(tmp_path: Path) -> None:
    path, _ = _run(tmp_path / "act")
    file = tmp_path / "act" / "recipe.toml"
    with_one_less = {key: value for key, value in tomllib.loads(file.read_text()).items() if key != "awp"}
    old = hashlib.sha256(json.dumps(with_one_less, sort_keys=True).encode()).hexdigest()
    file.write_text(tomli_w.dumps(with_one_less))
    unit = made(
        fallen([90, 70, 50], 100), spec=str(tmp_path / "act"), seed=1, trained=Trained(method="act", recipe_sha256=old)
    )
    assert {link.name: link.state for link in explain(saved(tmp_path / "act", unit))}["recipe"] == "verified"
    assert {link.name: link.state for link in explain(path)}["recipe"] == "differs"


def test_a_run_that_was_moved_with_its_records_is_found(tmp_path: Path) -> None:
    path, unit = _run(tmp_path / "act")
    assert whereabouts(path, unit.record) == str(tmp_path / "act")
    (tmp_path / "act").rename(tmp_path / "moved")
    path = tmp_path / "moved" / path.relative_to(tmp_path / "act")
    assert whereabouts(path, unit.record) == str(tmp_path / "moved")
    assert {link.name: link.state for link in explain(path)}["recipe"] == "verified"
    copied = saved(tmp_path / "leaderboard", unit)  # no run folder: there is nothing else to try
    assert whereabouts(copied, unit.record) == str(tmp_path / "act")
    assert {link.name: link.state for link in explain(copied)}["recipe"] == "missing"


def _missing(_: Record) -> str:
    raise UserError("the archive is gone")


@pytest.mark.parametrize(
    ("change", "name", "state", "detail"),
    [
        (lambda run: {"weights": lambda record: "f" * 64}, "weights", "differs", "f" * 16),
        (lambda run: {"weights": _missing}, "weights", "missing", "the archive is gone"),
        (lambda run: {"images": lambda record: "f" * 64}, "images", "differs", "f" * 16),
        (lambda run: (run / "recipe.toml").unlink() or {}, "recipe", "missing", "there is no"),
        (
            lambda run: (run / "recipe.toml").write_text(RECIPE + "[optim]\nlr = 9.0") and {},
            "recipe",
            "differs",
            "sha256",
        ),
        (lambda run: (run / "recipe.toml").write_text("nonsense") and {}, "recipe", "differs", "recipe.toml"),
    ],
)
def test_broken_links_are_named(
    tmp_path: Path, change: Callable[[Path], dict[str, Any]], name: str, state: str, detail: str
) -> None:
    path, _ = _run(tmp_path / "act")
    chain = explain(path, **change(tmp_path / "act"))
    link = next(link for link in chain if link.name == name)
    assert link.state == state and detail in link.detail
    assert all(other.state in ("verified", "not checked") for other in chain if other.name != name)


def test_a_damaged_record_has_no_chain(tmp_path: Path) -> None:
    path, _ = _run(tmp_path / "act")
    path.write_text(path.read_text().replace('"act"', '"ACT"'))
    (link,) = explain(path)
    assert (link.name, link.state) == ("record", "differs") and "sealed" in link.detail


def test_another_version_is_reported(tmp_path: Path) -> None:
    unit = made(fallen([9], 10), eps="0", environment=Environment(advbench="0.0.1", date="2026-08-01", torch="1.0"))
    found = {link.says: link for link in explain(saved(tmp_path, unit)) if link.name == "version"}
    assert found["advbench 0.0.1"].state == "differs" and found["torch 1.0"].state == "differs"
