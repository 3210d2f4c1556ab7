"""Perturbation sizes: the texts that are read, and that all others raise UserError and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from advbench.eps import EXAMPLES, NORMS, Eps, as_eps, as_eps_list, example_size, parse_eps, parse_eps_list
from advbench.errors import UserError


@pytest.mark.parametrize(
    ("text", "norm", "value"),
    [
        ("8/255", "linf", 8 / 255), ("0.031", "linf", 0.031), (" 1 ", "linf", 1.0), ("0", "linf", 0.0),
        (".5", "linf", 0.5), ("1e-3", "linf", 1e-3), ("1.5", "l2", 1.5), ("12", "l1", 12.0), ("3/2", "l2", 1.5),
        ("2", "fourier-linf", 2.0),
    ],
)  # fmt: skip
def test_sizes_are_kept_as_written_and_as_numbers(text: str, norm: str, value: float) -> None:
    eps = parse_eps(text, norm)
    assert (eps.text, eps.value, str(eps)) == (text.strip(), value, text.strip())


@pytest.mark.parametrize("norm", NORMS)
def test_the_examples_of_messages_are_lists_in_their_norm(norm: str) -> None:
    assert len(parse_eps_list(EXAMPLES[norm], norm)) == 3 and example_size(norm) in EXAMPLES[norm]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8", "8/255 was probably meant"),
        ("1.5", r"1.5/255 was probably meant"),
        ("256", "above 1"),
        ("16/8", "above 1"),
        ("8/0", "divides by zero"),
        ("1e999", "not finite"),
        ("-1", "is not a size"),
        ("", "is not a size"),
        ("nan", "is not a size"),
        ("inf", "is not a size"),
        ("8/255/2", "is not a size"),
        ("8 255", "is not a size"),
        ("0x1", "is not a size"),
        ("1_000", "is not a size"),
        ("8/255\nrm", "is not a size"),
    ],
)
def test_what_is_no_size_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_eps(text)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 255), st.integers(1, 255))
def test_fractions_are_their_quotient(top: int, bottom: int) -> None:
    assert parse_eps(f"{top}/{bottom}", "l2").value == top / bottom


@given(st.floats(0, 1))
def test_what_python_writes_is_read_back(value: float) -> None:
    assert parse_eps(repr(value)).value == value


PIECES = ["8", "255", "/", ".", "e", "-", "+", "1e400", "0", ",", " ", "\n", "nan", "٣", "½", "\x1b[31m", "9" * 400]


@given(st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.sampled_from(NORMS))
@example("1e-400/1e-400", "linf")
@example("9" * 6000, "l2")
def test_any_text_is_a_size_or_refused(text: str, norm: str) -> None:
    try:
        sizes = parse_eps_list(text, norm)
    except UserError as error:
        assert "\n" not in str(error)
        return
    values = [eps.value for eps in sizes]
    assert values == sorted(set(values)) and all(math.isfinite(value) and value >= 0 for value in values)
    assert norm != "linf" or values[-1] <= 1
    assert parse_eps_list(",".join(map(str, sizes)), norm) == sizes


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(1.7e308)
def test_the_one_spelling_has_the_value(value: float) -> None:
    assert parse_eps(Eps("", value).plain, "l2").value == value


@pytest.mark.parametrize(
    ("spellings", "plain"),
    [
        (("0.1", "0.10", "1/10", ".1", "1e-1"), "0.1"),
        (("8/255", "16/510", repr(8 / 255)), "8/255"),
        (("0", "0.0", "0/255"), "0"),
        (("51/255", "0.2"), "0.2"),
        (("1", "255/255"), "1"),
        (("1/7",), repr(1 / 7)),
    ],
)
def test_every_spelling_of_a_size_has_one(spellings: tuple[str, ...], plain: str) -> None:
    assert {parse_eps(text).plain for text in spellings} == {plain}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (8 / 255, "8/255"),
        (0.1, "0.1"),
        (0, "0"),
        (1, "1"),
        (Eps("0.10", 0.1), "0.10"),
        ("8/255", "8/255"),
        (1 / 3, "85/255"),
        (0.123456789, "0.123456789"),
    ],
)
def test_numbers_are_written_plainly_and_texts_stay(size: float | str | Eps, text: str) -> None:
    made = as_eps(size)
    assert made.text == text and made.value == (size if isinstance(size, float | int) else parse_eps(text).value)


@pytest.mark.parametrize("size", [None, True, [0.1], "", -0.1, float("inf"), 1j])
def test_what_is_no_size(size: object) -> None:
    with pytest.raises(UserError, match="not a size"):
        as_eps(size)


def test_several_sizes_in_any_form() -> None:
    assert [eps.text for eps in as_eps_list([0.5, "1/4", Eps("0.50", 0.5), 0])] == ["0", "1/4", "0.5"]
    assert [eps.text for eps in as_eps_list("0.1,0")] == ["0", "0.1"] and [eps.text for eps in as_eps_list(0.1)] == [
        "0.1"
    ]
    with pytest.raises(UserError, match="no eps"):
        as_eps_list([])


def test_float32_is_the_plainest_number_that_rounds_to_it() -> None:
    sizes = [0, 0.1, 8 / 255, 0.3, 0.0313725, 12.5]
    texts = ["0", "0.0313725", "8/255", "0.1", "0.3", "12.5"]
    assert [eps.text for eps in as_eps_list(np.array(sizes, np.float32), "l2")] == texts
    assert [eps.text for eps in as_eps_list(torch.tensor(sizes, dtype=torch.float32), "l2")] == texts
    value = float(np.float32(0.1))
    assert as_eps(value).value == value  # said in float64
