"""The language of --fail-if: the texts that are read, and that all others raise UserError and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from advbench.compare.gate import parse_gate
from advbench.errors import UserError


def test_the_contracts_example() -> None:
    first, second = parse_gate("acc@8/255 < baseline - 0.5 and clean < 80 or auc < baseline - 1")
    assert [str(test.quantity) for test in first.tests] == ["acc@8/255", "clean"]
    assert [(test.relative, test.bound) for test in first.tests] == [(True, 0.005), (False, 0.8)]
    assert first.tests[0].quantity.eps is not None and first.tests[0].quantity.eps.value == 8 / 255
    assert [(str(test.quantity), test.relative, test.bound) for test in second.tests] == [("auc", True, 0.01)]
    assert str(first) == "acc@8/255 < baseline - 0.5 and clean < 80"


@pytest.mark.parametrize(
    ("text", "quantity", "relative", "bound", "inclusive"),
    [
        ("clean<baseline", "clean", True, 0.0, False),
        ("clean <= baseline-1", "clean", True, 0.01, True),
        ("acc@0.03<50", "acc@0.03", False, 0.5, False),
        ("acc@ 8/255 < 50.", "acc@8/255", False, 0.5, False),
        ("acc@1e-2 < baseline - 1e-1", "acc@1e-2", True, 0.001, False),
        ("median_norm < 8/255", "median_norm", False, 8 / 255, False),
        ("\tauc\n<\t60.5 ", "auc", False, 0.605, False),
        ("auc <= baseline - 1", "auc", True, 0.01, True),
        ("acc@0.1 <= 0", "acc@0.1", False, 0.0, True),
        ("clean < baseline - 99.9", "clean", True, 0.999, False),
    ],
)
def test_forms(text: str, quantity: str, relative: bool, bound: float, inclusive: bool) -> None:
    ((test,),) = (branch.tests for branch in parse_gate(text))
    assert (str(test.quantity), test.relative, test.inclusive) == (quantity, relative, inclusive)
    assert test.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "where a quantity was expected"),
        ("accuracy < 5", "'accuracy' where a quantity"),
        ("acc < 5", "'acc' where a quantity"),
        ("clean", "must be followed by <"),
        ("clean > 5", "must be followed by < or <= .a gate fails on drops., not '>'"),
        ("clean = 5", "must be followed by <"),
        ("clean <", "^--fail-if: the end where a number or baseline"),
        ("clean < base", "'base' where a number or baseline"),
        ("clean < -1", "'-' where a number"),
        ("clean < baseline + 1", r"'\+' where and, or"),
        ("clean < baseline -", "^--fail-if: the end where a number"),
        ("clean < 5 clean < 6", "'clean' where and, or"),
        ("clean < 5 and", "^--fail-if: the end where a quantity"),
        ("or clean < 5", "'or' where a quantity"),
        ("(clean < 5)", "where a quantity"),
        ("clean < 101", "above 100"),
        ("auc < 101", "above 100"),
        ("clean < 0", "clean is never below 0"),
        ("median_norm < 0.0", "median_norm is never below 0"),
        ("acc@0.1 < baseline - 100", "never crosses baseline - 100"),
        ("auc < baseline - 100.5", "above 100"),
        ("clean <= baseline - 100", "never crosses baseline - 100"),
        ("auc < 1/0", "no finite number"),
        ("auc < 1e999", "no finite number"),
        ("acc@1/0 < 5", "divides by zero"),
        ("acc@-1 < 5", "'acc' where a quantity|'@-1 < 5' is not"),
        ("baseline < clean", "'baseline' where a quantity"),
        ("clean < 5; import os", "'; import os' is not understood"),
        ("__import__('os') < 5", "not understood|where a quantity"),
    ],
)
def test_everything_else_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_gate(text)
    assert "\n" not in str(caught.value)


PIECES = [
    "clean",
    "acc@8/255",
    "acc@",
    "auc",
    "median_norm",
    "baseline",
    *"-<>(",
    "<=",
    "and",
    "or",
    "0.5",
    "80",
    "8/255",
]


@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join))
@example("acc@" + "9" * 500 + " < 5")
@example("auc < " + "9" * 5000)
@example("and " * 50)
@example("clean < 5 or " * 50 + "clean < 5")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        branches = parse_gate(text)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert branches and all(branch.tests for branch in branches)
        assert parse_gate(" or ".join(map(str, branches))) == branches


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 999))
def test_a_drop_of_just_the_tolerance_is_within_it(value: int, baseline: int, tolerance: int) -> None:
    """Accuracies of 1,000 images are compared as the whole numbers that they are."""
    ((test,),) = (branch.tests for branch in parse_gate(f"clean < baseline - {tolerance / 10}"))
    ((also,),) = (branch.tests for branch in parse_gate(f"clean <= baseline - {tolerance / 10}"))
    assert test.fires(value / 1000, baseline / 1000) == (baseline - value > tolerance)
    assert also.fires(value / 1000, baseline / 1000) == (baseline - value >= tolerance)
