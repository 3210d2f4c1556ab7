"""Labels of models: short, distinct, and safe to show."""

from pathlib import Path

import pytest

from advbench.record import Record, Trained, labels, load_records

LEADERBOARDS = Path(__file__).parent.parent / "leaderboards"
BOARDS = LEADERBOARDS / "records"


@pytest.fixture(scope="module")
def record() -> Record:
    return load_records(BOARDS / "mnist")[0][0]


def of(record: Record, id: str = "0" * 16, **model: object) -> Record:
    parts = {"name": None, "trained": None, **model}
    return record.model_copy(update={"id": id, "model": record.model.model_copy(update=parts)})


def trained(method: str = "trades", seed: int = 0, eps: str = "0.1") -> Trained:
    return Trained(method=method, seed=seed, eps=float(eps), eps_text=eps)


@pytest.mark.parametrize("board", [".", "small", "brief"])
def test_no_two_records_of_a_board_have_one_label(board: str) -> None:
    records, _ = load_records(LEADERBOARDS / board / "records")
    found = labels(records)
    assert len(set(found)) == len(records)
    methods = [record.model.trained.method for record in records if record.model.trained]
    assert all(label.startswith(method) for label, method in zip(found, methods, strict=True))


def test_a_name_comes_before_the_method_and_the_method_before_the_spec(record: Record) -> None:
    several = [
        of(record, name="ours", trained=trained(), spec="runs/a"),
        of(record, trained=trained(), arch="mlp", spec="runs/b"),
        of(record, spec="zoo:c"),
    ]
    assert labels(several) == ["ours", "trades mlp", "zoo:c"]


def test_common_folders_of_specs_are_dropped(record: Record) -> None:
    specs = ("work/models/a/best.pt", "work/models/b/best.pt")
    assert labels([of(record, spec=spec) for spec in specs]) == ["a/best.pt", "b/best.pt"]
    assert labels([of(record, spec="models/best.pt")]) == ["models/best.pt"]


@pytest.mark.parametrize(
    ("several", "expected"),
    [
        ([{"trained": trained(seed=3)}, {"trained": trained(seed=4)}], ["seed 3", "seed 4"]),
        ([{"trained": trained(eps="0.1")}, {"trained": trained(eps="0.2")}], ["eps 0.1", "eps 0.2"]),
        ([{"trained": trained(), "spec": f"runs/t-{way}-s0"} for way in ("long", "wide")], ["long", "wide"]),
        ([{"trained": trained(), "weights_sha256": digit * 64} for digit in "ab"], ["a" * 8, "b" * 8]),
        ([{"trained": trained()}, {"trained": trained()}], ["record 00000000", "record 11111111"]),
    ],
)
def test_models_that_are_alike_are_told_apart(record: Record, several: list[dict], expected: list[str]) -> None:
    records = [of(record, id=str(place) * 16, arch="mlp", **one) for place, one in enumerate(several)]
    assert labels(records) == [f"trades mlp, {text}" for text in expected]


def test_only_those_that_are_alike_grow_longer(record: Record) -> None:
    methods = [trained("act"), trained("trades", 0), trained("trades", 1)]
    assert labels([of(record, trained=one, arch="mlp") for one in methods]) == [
        "act mlp", "trades mlp, seed 0", "trades mlp, seed 1",
    ]  # fmt: skip


def test_labels_are_inert_and_distinct_even_where_a_name_is_what_another_would_be_called(record: Record) -> None:
    names = ["a\x1b[31m\nb\u202e", "trades mlp, seed 0", None, None]
    several = [of(record, str(place) * 16, name=name, trained=trained(seed=max(place - 2, 0)), arch="mlp")
               for place, name in enumerate(names)]  # fmt: skip
    found = labels(several)
    assert len(set(found)) == 4
    assert found[0] == "a\\x1b[31m\\x0ab\\u202e"
