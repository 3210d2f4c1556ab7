"""Records: counted from fates, named by hash, sound or refused."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_records
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import advbench
from advbench.errors import UserError
from advbench.record import (
    FLAG_NAMES,
    AttackRef,
    DatasetRef,
    Engine,
    Environment,
    Fates,
    Flag,
    ModelRef,
    Record,
    load_record,
    load_records,
    slug,
)
from advbench.record.black_box import black_box_ahead
from advbench.record.record import record_files

SQUARE = AttackRef(name="square", version="1")


def record_of(fates: Fates, eps: str = "0,4/255,8/255", **changes: Any) -> Record:
    """A record by two attacks."""
    return made_records.record_of(fates, eps, **{"attack": [AttackRef(name="apgd-ce", version="1"), SQUARE], **changes})


FATES = Fates(
    np.array([0, 1, -1, 2, -1], np.int16),
    np.array([-1, 0, -1, 1, -1], np.int16),
    np.array([0.0, 0.01, np.nan, 0.02, np.nan]),
)


def test_numbers_are_counted_from_the_fates() -> None:
    record = record_of(FATES)
    assert record.clean == 0.8
    assert [point.robust for point in record.curve] == [4, 3, 2]
    assert [point.accuracy for point in record.curve] == [0.8, 0.6, 0.4]
    assert record.curve[1].ci_low == pytest.approx(0.2307, abs=1e-4)  # Wilson, 3 of 5
    assert record.curve[1].ci_high == pytest.approx(0.8824, abs=1e-4)
    assert record.auc == pytest.approx((0.8 / 2 + 0.6 + 0.4 / 2) / 2)  # trapezoid on an even grid
    assert record.median_norm == 0.02  # 0, 0.01, 0.02, inf, inf
    assert record.n == 5
    assert record.attack_name == "apgd-ce+square"


def test_clean_accuracy_without_zero_on_the_grid() -> None:
    fates = Fates(np.array([0, 0, -1, 1]), np.array([-1, 0, -1, 1]))
    record = record_of(fates, eps="4/255,8/255")
    assert record.clean == 0.75
    assert record.curve[0].accuracy == 0.5
    assert record.median_norm is None


def test_the_contract_names_the_fields() -> None:
    plain = json.loads(record_of(FATES).to_json())
    fields = "schema id question model dataset norm attack engine seed clean curve median_norm auc flags "
    fields += "seconds forwards backwards useful external environment supersedes"
    assert " ".join(plain) == fields
    assert plain["schema"] == 2
    assert " ".join(plain["curve"][0]) == "eps eps_text n robust accuracy ci_low ci_high certified"


def test_id_covers_question_and_verdicts_and_nothing_else() -> None:
    record = record_of(FATES)
    again = record_of(
        FATES,
        seconds=99.0,
        forwards=7,
        flags=[Flag(name="small-n", severity="note")],
        environment=Environment(advbench="0.2.0", date="2027-01-01", device="cuda"),
    )
    assert again.id == record.id and again.question == record.question

    other = Fates(FATES.fell, np.array([-1, 0, -1, 0, -1]))
    assert record_of(other).question == record.question
    assert record_of(other).id != record.id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"eps": "0,3/255,8/255"},
        {"norm": "l2"},
        {"engine": Engine(name="own", version="1", slots=32, precision="fp32")},
        {"engine": Engine(name="own", version="2", slots=64, precision="fp32")},
        {"engine": Engine(name="own", version="1", slots=64, precision="bf16")},
        {"attack": [AttackRef(name="apgd-ce", version="1", settings={"steps": 9}), SQUARE]},
        {"attack": [AttackRef(name="apgd-ce", version="2"), SQUARE]},
        {"attack": [SQUARE, AttackRef(name="apgd-ce", version="1")]},
        {"model": ModelRef(spec="runs/act", arch="small_cnn", params=1000, weights_sha256="c" * 64)},
        {"model": ModelRef(spec="runs/act", arch="mlp", params=1000, weights_sha256="a" * 64)},
        {"dataset": DatasetRef(name="cifar10", split="test", indices="first:5", images_sha256="d" * 64)},
        {"dataset": DatasetRef(name="cifar10", split="test", indices=(0, 1, 2, 3, 5), images_sha256="b" * 64)},
    ],
    ids=str,
)  # fmt: skip
def test_what_decides_the_answer_changes_the_question(change: dict[str, Any]) -> None:
    assert record_of(FATES, **change).question != record_of(FATES).question


def test_save_and_load(tmp_path: Path) -> None:
    record = record_of(FATES)
    path = record.save(tmp_path, FATES)
    assert path == tmp_path / "records" / "cifar10" / "linf" / f"{record.id}.json"
    loaded, fates = load_record(path)
    assert loaded == record
    np.testing.assert_array_equal(fates.fell, FATES.fell)
    np.testing.assert_array_equal(fates.by, FATES.by)
    np.testing.assert_array_equal(fates.norm, FATES.norm)


def test_the_first_of_two_equal_outcomes_stays(tmp_path: Path) -> None:
    path = record_of(FATES).save(tmp_path, FATES)
    before = path.read_bytes(), path.with_suffix(".npz").read_bytes()
    norm = np.array([0.0, 0.011, np.nan, 0.019, np.nan])
    later = Fates(FATES.fell, FATES.by, norm)
    assert record_of(later, seconds=5.0).save(tmp_path, later) == path
    assert (path.read_bytes(), path.with_suffix(".npz").read_bytes()) == before


def test_an_archive_that_a_crash_left_alone_is_replaced(tmp_path: Path) -> None:
    record = record_of(FATES)
    path = record.save(tmp_path, FATES)
    path.unlink()
    later = Fates(FATES.fell, FATES.by, np.array([0.0, 0.011, np.nan, 0.019, np.nan]))
    assert record_of(later).save(tmp_path, later) == path
    assert load_record(path)[0].median_norm == 0.019
    assert [file.suffix for file in path.parent.iterdir() if file.suffix == ".tmp"] == []


def test_saving_over_damage_is_refused(tmp_path: Path) -> None:
    record = record_of(FATES)
    path = record.save(tmp_path, FATES)
    path.with_suffix(".npz").write_bytes(b"half")
    with pytest.raises(UserError, match="damaged"):
        record.save(tmp_path, FATES)
    assert path.with_suffix(".npz").read_bytes() == b"half"


def test_saving_with_foreign_fates_is_refused(tmp_path: Path) -> None:
    other = Fates(np.array([0, 1, -1, 2, 2]), np.array([-1, 0, -1, 1, 1]))
    with pytest.raises(UserError, match="id is not the hash"):
        record_of(FATES).save(tmp_path, other)
    assert list(tmp_path.rglob("*.json")) == []


def _edit(**changes: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        plain = json.loads(path.read_bytes())
        for key, value in changes.items():
            *parents, last = key.split("__")
            part = plain
            for parent in parents:
                part = part[int(parent) if parent.isdigit() else parent]
            part[last] = value
        path.write_text(json.dumps(plain))

    return damage


def _write(suffix: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.with_suffix(suffix).write_bytes(content))


def _cut(path: Path) -> None:
    archive = path.with_suffix(".npz")
    archive.write_bytes(archive.read_bytes()[:-40])


def void(_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_edit(schema=3), "schema: it must be 1 or 2"),
        (_edit(schema=1), "sealed"),
        (_edit(surprise=1), "surprise: there is no such field"),
        (_edit(seed="0"), "seed: it must be a whole number"),
        (_edit(clean=0.9), "its clean is not what the fates say"),
        (_edit(auc=0.9), "its auc is not what the fates say"),
        (_edit(median_norm=None), "its median_norm is not what the fates say"),
        (_edit(curve__2__robust=3), "its curve is not what the fates say"),
        (_edit(curve__2__accuracy=0.5), "its curve is not what the fates say"),
        (_edit(curve__2__ci_low=0.3), "its curve is not what the fates say"),
        (_edit(curve__2__eps_text="9/255"), "is not eps"),
        (_edit(curve__2__eps=0.001), "eps must rise"),
        (_edit(curve__2__n=6), "n must be the number of images"),
        (_edit(seed=1), "question is not the hash"),
        (_edit(model__weights_sha256="e" * 64), "question is not the hash"),
        (_edit(id="0" * 16), "id is not the hash"),
        (_edit(model__spec="runs/better"), "sealed"),
        (_edit(flags=[]), "sealed"),
        (_edit(seconds=1.0), "sealed"),
        (_edit(norm="l7"), "norm must be one of"),
        (_edit(environment__date="yesterday"), "environment.date"),
        (_edit(dataset__indices="all"), "first:N"),
        (_write(".json", b""), "invalid JSON"),
        (_write(".json", b"[]"), "it must be a table of fields"),
        (_write(".json", b"\xff\xfe"), "invalid JSON"),
        (_write(".npz", b"PK"), "npz is damaged"),
        (_write(".npz", b"PK\x03\x04"), "BadZipFile"),
        (lambda path: path.with_suffix(".npz").unlink(), "is missing"),
        (_cut, "npz is damaged"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    path = record_of(FATES, flags=[Flag(name="masked", severity="suspect")]).save(tmp_path, FATES)
    damage(path)
    with pytest.raises(UserError) as caught:
        load_record(path)
    assert says in str(caught.value)
    assert path.stem in str(caught.value)
    assert "\n" not in str(caught.value)
    records, damaged = load_records(tmp_path)
    assert records == []
    assert [one.path for one in damaged] == [path]


def test_every_flipped_byte_of_the_archive_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = record_of(FATES).save(tmp_path, FATES)
    whole = path.with_suffix(".npz").read_bytes()
    noticed = 0
    for position in range(len(whole)):
        path.with_suffix(".npz").write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            fates = load_record(path)[1]
        except UserError:
            noticed += 1
        else:  # a byte of the zip that holds no data, such as its dates
            assert fates.digest() == FATES.digest()
    assert noticed > len(whole) // 2


def test_sizes_that_were_altered_are_noticed(tmp_path: Path) -> None:
    record = record_of(FATES)
    path = record.save(tmp_path, FATES)
    assert FATES.norm is not None
    altered = Fates(FATES.fell, FATES.by, np.where(FATES.norm == 0.01, 0.009, FATES.norm))  # same median
    altered.save(path.with_suffix(".npz"), record.seal(FATES))
    with pytest.raises(UserError, match="sealed"):
        load_record(path)


def test_distances() -> None:
    """0 where the clean image is wrong, else the smaller of the size found and the grid's bound; inf if standing."""
    nan = np.nan
    fates = Fates(
        np.array([0, 0, 1, 1, -1, -1]), np.array([-1, 0, 0, 0, -1, -1]), np.array([0.3, nan, 0.15, 0.5, nan, 0.7])
    )
    assert fates.distances([0.1, 0.2]).tolist() == [0.0, 0.1, 0.15, 0.2, np.inf, 0.7]
    assert fates.median_norm([0.1, 0.2]) == pytest.approx(0.175)
    assert Fates(fates.fell, fates.by).distances([0.1, 0.2]).tolist() == [0.0, 0.1, 0.2, 0.2, np.inf, np.inf]


def test_a_misnamed_copy_is_no_second_record(tmp_path: Path) -> None:
    path = record_of(FATES).save(tmp_path, FATES)
    for suffix in (".json", ".npz"):
        path.with_name(f"copy{suffix}").write_bytes(path.with_suffix(suffix).read_bytes())
    records, damaged = load_records(tmp_path)
    assert [record.id for record in records] == [path.stem]
    assert "misnamed" in damaged[0].reason
    assert load_record(path.with_name("copy.json"))[0].id == path.stem  # by itself it is sound


def test_reading_unpickles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, fell=np.array([{"a": 1}], dtype=object), by=np.zeros(1), seal=np.zeros(0, np.uint8))
    with pytest.raises(UserError, match="damaged"):
        Fates.load(path)


def test_an_archive_that_unpacks_to_too_much_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, fell=np.zeros(300 * 2**20, np.int8))
    with pytest.raises(UserError, match="unpacks to more"):
        Fates.load(path)


@pytest.mark.parametrize(
    ("fell", "by", "says"),
    [
        ([0, 1], [0], "one length"),
        ([], [], "at least one"),
        ([-2], [-1], "indices, or -1"),
        ([-1], [0], "by must be -1"),
        ([1], [-1], "by must be -1"),
        ([40_000], [0], "16 bits"),
        ([0.5], [0], "one row of numbers"),
        ([[0]], [[0]], "one row of numbers"),
    ],
)
def test_impossible_fates(fell: list[Any], by: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Fates(np.asarray(fell, None if fell else np.int16), np.asarray(by, None if by else np.int16))


def test_fates_that_do_not_fit_the_record() -> None:
    with pytest.raises(UserError, match="beyond the 2 eps"):
        record_of(FATES, eps="0,8/255")
    with pytest.raises(UserError, match="falls at eps 0"):
        record_of(Fates(np.array([0]), np.array([0])))
    with pytest.raises(UserError, match="n must be the number of images"):
        record_of(FATES, dataset=DatasetRef(name="x", split="test", indices="first:6", images_sha256="b" * 64))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_settings_that_are_not_plain_json(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        AttackRef(name="a", version="1", settings={"x": [number]})
    with pytest.raises(ValueError, match="finite"):
        Environment(advbench="1", date="2026-01-01", heat=number)


@pytest.mark.parametrize(
    "name", ["../../etc", "npz:/a/b.npz", "", ".", "..", "a/b", "CON", "x" * 300, "\x1b[31m", "mnist "]
)
def test_dataset_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    record = record_of(FATES, dataset=DatasetRef(name=name, split="test", indices="first:5", images_sha256="b" * 64))
    path = record.save(tmp_path, FATES)
    assert path.parent.parent.parent == tmp_path / "records"
    assert path.resolve().is_relative_to((tmp_path / "records").resolve())
    assert load_record(path)[0].dataset.name == name
    assert slug(name) != name


@given(st.text(max_size=80), st.text(max_size=80))
def test_slugs_are_plain_and_distinct(a: str, b: str) -> None:
    for name in (slug(a), slug(b)):
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") and name.strip(".") and len(name) <= 80
    assert (slug(a) == slug(b)) == (a == b)


@st.composite
def fates_of(draw: st.DrawFn) -> Fates:
    n = draw(st.integers(1, 30))
    fell = draw(hnp.arrays(np.int16, n, elements=st.integers(-1, 2)))
    by = np.where(fell == 0, -1, np.where(fell < 0, -1, draw(hnp.arrays(np.int16, n, elements=st.integers(0, 1)))))
    norm = draw(st.none() | hnp.arrays(np.float64, n, elements=st.floats(0, 1) | st.just(float("nan"))))
    return Fates(fell, by, norm)


@given(fates_of())
def test_curves_never_rise_and_areas_average_to_the_auc(fates: Fates) -> None:
    record = record_of(fates)
    accuracies = [point.accuracy for point in record.curve]
    assert accuracies == sorted(accuracies, reverse=True)
    assert record.clean == accuracies[0]  # 0 is on the grid
    assert record.auc == pytest.approx(np.trapezoid(accuracies, record.eps) / record.eps[-1])
    assert record.auc == pytest.approx(fates.areas(record.eps).mean())
    assert all(point.ci_low <= point.accuracy <= point.ci_high for point in record.curve)
    distances = fates.distances(record.eps)
    for index, eps in enumerate(record.eps):  # what is known to be near has fallen by then
        assert (distances[~fates.standing(index)] <= eps).all()


@given(fates_of())
@settings(max_examples=settings.default.max_examples // 5)
def test_archives_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, fates: Fates) -> None:
    path = tmp_path_factory.mktemp("fates") / "x.npz"
    fates.save(path)
    assert Fates.load(path).digest() == fates.digest()
    assert fates.to_npz() == Fates.load(path).to_npz()


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_parsing_bytes_fails_only_with_a_line_for_the_user(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("record")
    for name in ("x.json", "x.npz"):
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_record(folder / "x.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        Fates.load(folder / "x.npz")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(Record.model_fields)), JSON)
def test_any_value_in_any_field_is_accepted_or_refused(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    record = record_of(FATES)
    plain = json.loads(record.to_json())
    plain["schema" if field == "schema_version" else field] = value
    folder = tmp_path_factory.mktemp("record")
    (folder / "x.json").write_text(json.dumps(plain))
    FATES.save(folder / "x.npz", record.seal(FATES))
    try:
        loaded, _ = load_record(folder / "x.json")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert loaded == record


BOARDS = Path(__file__).parents[1] / "leaderboards"
BRIEF = BOARDS / "brief" / "records"  # what schema 1 has left


def test_records_of_schema_1_keep_their_bytes() -> None:
    seen = 0
    for path in record_files(BRIEF)[::4]:
        record, _ = load_record(path)
        if record.schema_version == 1:
            seen += 1
            unchanged = record.model_copy(update={"flags": Record.model_validate_json(path.read_bytes()).flags})
            assert unchanged.to_json() == path.read_text()
            assert record.question in path.read_text()
    assert seen >= 5


def test_black_box_flags_of_schema_1_are_counted_again_with_their_eps() -> None:
    """Square won over 2 % of the images of many honest models, but only above the ranked eps 0.1."""
    seen = 0
    for path in record_files(BRIEF / "fashion-mnist"):
        old = json.loads(path.read_text())
        record, fates = load_record(path)
        if old["schema"] == 1 and any(flag["name"] == "square-wins" for flag in old["flags"]):
            seen += 1
            (flag,) = (flag for flag in record.flags if flag.name == "square-wins")
            assert flag.eps is not None and flag.n == len(fates)
            square = [attack.name for attack in record.attack].index("square")
            assert flag.k == int(((fates.by == square) & (fates.fell == record.eps.index(flag.eps))).sum())
            assert record.doubts(0.1) == ()
    assert seen >= 5


@pytest.mark.parametrize(
    ("shares", "beside", "severity", "eps"),
    [
        ((0.0, 0.0), "", None, None),
        ((0.01, 0.02), "", "note", 0.1),
        ((0.01, 0.05), "", "note", 0.1),
        ((0.01, 0.05), "zero-gradient", "suspect", 0.2),
        ((0.03, 0.05), "loss-not-rising", "suspect", 0.1),
        ((0.03, 0.05), "small-n", "note", 0.1),
        ((0.03, 0.12), "", "suspect", 0.2),
        ((0.12, 0.01), "", "suspect", 0.1),
    ],
)
def test_black_box_ahead(shares: tuple[float, float], beside: str, severity: str | None, eps: float | None) -> None:
    n = 1000
    fell = np.full(n, -1)
    first, second = (round(share * n) for share in shares)
    fell[:first], fell[first : first + second] = 1, 2
    fates = Fates(fell, np.where(fell < 0, -1, 1))
    flags = [Flag(name=beside, severity="note")] if beside else []
    found = black_box_ahead("square", [1], fates, [0.0, 0.1, 0.2], flags)
    assert [(flag.severity, flag.eps) for flag in found] == ([(severity, eps)] if severity else [])


def test_a_flag_decides_at_its_eps_and_above() -> None:
    suspect = Flag(name="square-wins", severity="suspect", eps=0.15)
    assert not suspect.decides(0.1) and suspect.decides(0.15) and suspect.decides(0.2) and suspect.decides()
    assert Flag(name="random", severity="suspect").decides(0.0)
    assert not Flag(name="small-n", severity="note").decides()
    record = record_of(FATES, flags=[suspect, Flag(name="x", severity="note")])
    assert record.doubts(0.1) == () and record.doubts() == (suspect,)


def test_code_mean_and_abstention_are_part_of_the_question() -> None:
    base = ModelRef(spec="m", arch="mlp", params=1, weights_sha256="a" * 64)
    changes: list[dict[str, Any]] = [
        {"code_sha256": "c" * 64}, {"code_sha256": "d" * 64}, {"mean": (0.5,)}, {"std": (0.5,)}, {"abstain": "last"},
    ]  # fmt: skip
    changed = [base, *(base.model_copy(update=change) for change in changes)]
    assert len({record_of(FATES, model=model).question for model in changed}) == 6
    named = base.model_copy(update={"name": "a better name", "spec": "elsewhere"})
    assert record_of(FATES, model=named).id == record_of(FATES, model=base).id


def test_every_flag_that_is_raised_is_known_by_its_name() -> None:
    """`compare --allow-flags` tells a typo by this list."""
    raised = set()
    for file in Path(advbench.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                named = [part.value for part in node.keywords if part.arg == "name"]
                names = {"Flag": named, "note": node.args[:1], "graded": node.args[:1]}.get(node.func.id, [])
                raised |= {part.value for part in names if isinstance(part, ast.Constant)}
            if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):  # of `search_beyond`
                first = node.value.elts[0]
                raised |= {first.value} if isinstance(first, ast.Constant) and "evaluator" in file.parts else set()
    assert len(raised) > 20 and "zero-gradient" in raised
    assert raised <= set(FLAG_NAMES)
    assert list(FLAG_NAMES) == sorted(set(FLAG_NAMES))
