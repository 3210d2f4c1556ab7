"""Default eps grids, and the choice of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.defaults.choice import GRID_FACTORS, choose_eps, choose_rows, grid, reference_eps
from advbench.eps import NORMS, parse_eps, parse_eps_list
from advbench.errors import UserError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test")


@pytest.mark.parametrize(
    ("base", "norm", "texts"),
    [
        ("8/255", "linf", "0 2/255 4/255 6/255 8/255 12/255 16/255"),
        ("1/255", "linf", "0 0.25/255 0.5/255 0.75/255 1/255 1.5/255 2/255"),
        ("0.1", "linf", "0 0.025 0.05 0.075 0.1 0.15 0.2"),
        ("0.3", "linf", "0 0.075 0.15 0.225 0.3 0.45 0.6"),
        ("0.7", "linf", "0 0.175 0.35 0.525 0.7 1"),
        ("200/255", "linf", "0 50/255 100/255 150/255 200/255 1"),
        ("0.7", "l2", "0 0.175 0.35 0.525 0.7 1.05 1.4"),
        ("12", "l1", "0 3 6 9 12 18 24"),
        ("1e-3", "linf", "0 0.00025 0.0005 0.00075 0.001 0.0015 0.002"),
    ],
)
def test_grid_is_written_like_its_base(base: str, norm: str, texts: str) -> None:
    assert [size.text for size in grid(parse_eps(base, norm), norm)] == texts.split()


@given(st.integers(1, 255), st.sampled_from(["linf", "l2"]))
def test_grid_values_are_those_multiples(top: int, norm: str) -> None:
    base = parse_eps(f"{top}/255", norm)
    wanted = [eval(step) * base.value for step in GRID_FACTORS]
    if norm == "linf":
        wanted = sorted({min(value, 1.0) for value in wanted})
    assert [size.value for size in grid(base, norm)] == pytest.approx(wanted, rel=1e-12)


def test_eps_come_from_the_training_then_from_the_dataset() -> None:
    train = parse_eps("4/255", "linf")
    assert choose_eps("0.1,0", "linf", train, "cifar10")[0] == [parse_eps("0"), parse_eps("0.1")]
    assert [size.text for size in choose_eps(None, "linf", train, "cifar10")[0]][-1] == "8/255"
    assert [size.text for size in choose_eps(None, "linf", None, "cifar10")[0]][-1] == "16/255"
    assert [size.text for size in choose_eps(None, "l2", None, "cifar10")[0]][-1] == "1"
    assert [size.text for size in choose_eps(None, "linf", parse_eps("0"), "mnist")[0]][-1] == "0.6"


@pytest.mark.parametrize("norm", NORMS)
def test_where_no_eps_is_usual_the_error_names_one_that_fits_the_norm(norm: str) -> None:
    with pytest.raises(UserError, match=f"no usual {norm} eps .*: write a list such as --eps ") as caught:
        choose_eps(None, norm, None, "npz:x.npz")
    assert len(parse_eps_list(str(caught.value).split("--eps ")[1], norm)) == 3


def test_reference_eps() -> None:
    assert str(reference_eps("mnist", "linf")) == "0.3"
    assert reference_eps("mnist", "fourier-linf") is None
    assert reference_eps("package.module:data", "linf") is None


def test_the_first_images(digits: Dataset) -> None:
    rows, indices, _ = choose_rows(digits, 7, "first")
    assert rows.tolist() == list(range(7)) and indices == "first:7"
    assert choose_rows(digits, None, "first")[1] == "first:500"


def test_more_images_than_there_are(digits: Dataset) -> None:
    with pytest.raises(UserError, match="at most 500"):
        choose_rows(digits, 501, "first")


def test_random_images_are_distinct_repeat_and_grow(digits: Dataset) -> None:
    rows, indices, _ = choose_rows(digits, 100, "random:3")
    assert indices == "random:3:100"
    assert len(set(rows.tolist())) == 100
    assert torch.equal(rows, choose_rows(digits, 100, "random:3")[0])
    assert torch.equal(rows, choose_rows(digits, 200, "random:3")[0][:100])
    assert not torch.equal(rows, choose_rows(digits, 100, "random:4")[0])
    assert sorted(choose_rows(digits, 500, "random:3")[0].tolist()) == list(range(500))


@pytest.mark.parametrize("text", ["5 3 499", "5,3,499", "5\n3\n499\n", "[5, 3, 499]"])
def test_images_of_a_file(digits: Dataset, tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows"
    file.write_text(text)
    rows, indices, _ = choose_rows(digits, None, str(file))
    assert rows.tolist() == [5, 3, 499] and indices is None
    assert choose_rows(digits, 2, str(file))[0].tolist() == [5, 3]


@pytest.mark.parametrize("text", ["5 5", "-1", "1.5", "five", "", "[[1]]", "500", '{"a": 1}'])
def test_a_file_that_lists_no_images(digits: Dataset, tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)):
        choose_rows(digits, None, str(file))
