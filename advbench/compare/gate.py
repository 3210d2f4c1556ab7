"""The language of --fail-if: `acc@8/255 < baseline - 0.5 and clean < 80 or auc < baseline - 1`.

    expression = branch {"or" branch}
    branch     = test {"and" test}
    test       = quantity ("<" | "<=") (number | "baseline" ["-" number])
    quantity   = "clean" | "acc@EPS" | "auc" | "median_norm"

Numbers are in the units of the tables: percentage points for clean, acc@EPS and auc, those of the norm for median_norm.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from advbench.eps import Eps, parse_eps
from advbench.errors import UserError

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_TOKEN = re.compile(
    rf"\s*(?:(?P<eps>acc@\s*(?P<size>{_NUMBER}(?:/{_NUMBER})?))|(?P<word>[A-Za-z_]\w*)"
    rf"|(?P<number>{_NUMBER}(?:/{_NUMBER})?)|(?P<sign><=|>=|[-+<>=()]))"
)
_EXAMPLE = "write for example: acc@8/255 < baseline - 0.5 or clean < 80"
_SLACK = 1e-9  # differences of accuracies are not exact in floating point


@dataclass(frozen=True)
class Quantity:
    """A quantity that a gate tests: clean, acc (with `eps`), auc or median_norm."""

    kind: str
    eps: Eps | None = None

    def __str__(self) -> str:
        return f"acc@{self.eps.text}" if self.eps else self.kind

    @property
    def is_accuracy(self) -> bool:
        return self.kind in ("clean", "acc")

    @property
    def scale(self) -> float:
        """What the tables multiply it by: 100 for percent."""
        return 1 if self.kind == "median_norm" else 100


@dataclass(frozen=True)
class Test:
    """`quantity < bound`, or `quantity < baseline - bound` if `relative`; `<=` if `inclusive`.

    `bound` is in natural units: a fraction for accuracies and auc. A test that is not relative is a floor.
    """

    quantity: Quantity
    inclusive: bool
    relative: bool
    bound: float
    text: str

    def fires(self, value: float, baseline: float) -> bool:
        """Whether `value` is below the bound (or on it, for <=)."""
        gap = value - (baseline - self.bound if self.relative else self.bound)
        return gap <= _SLACK if self.inclusive else gap < -_SLACK


@dataclass(frozen=True)
class Branch:
    """Tests joined by "and"."""

    tests: tuple[Test, ...]

    def __str__(self) -> str:
        return " and ".join(test.text for test in self.tests)


def parse_gate(text: str) -> tuple[Branch, ...]:
    """The branches of an expression, which "or" joins. Raises UserError for text that is not an expression."""
    tokens = _tokens(text)
    branches: list[Branch] = []
    tests: list[Test] = []
    while True:
        tests.append(_test(tokens))
        kind, word, _ = tokens.pop(0)
        if word == "and":
            continue
        branches.append(Branch(tuple(tests)))
        tests = []
        if kind == "end":
            return tuple(branches)
        if word != "or":
            _refuse(f"{word!r} where and, or or the end was expected")


_Token = tuple[str, str, str]  # kind, text, and the size of an acc@


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            _refuse(f"{text[position:].strip()[:20]!r} is not understood")
        kind = next(name for name in ("eps", "word", "number", "sign") if match[name] is not None)
        found.append((kind, match[kind], match["size"] or ""))
        position = match.end()
    return [*found, ("end", "", "")]


def _said(word: str) -> str:
    return repr(word) if word else "the end"


def _test(tokens: list[_Token]) -> Test:
    kind, word, size = tokens.pop(0)
    if kind == "eps":
        quantity = Quantity("acc", parse_eps(size, "l2"))
    elif word in ("clean", "auc", "median_norm"):
        quantity = Quantity(word)
    else:
        _refuse(f"{_said(word)} where a quantity was expected: clean, acc@EPS, auc or median_norm")
    kind, sign, _ = tokens.pop(0)
    if sign not in ("<", "<="):
        _refuse(f"{quantity} must be followed by < or <= (a gate fails on drops), not {_said(sign)}")
    kind, word, _ = tokens.pop(0)
    relative = word == "baseline"
    bound, shown = 0.0, word
    if relative:
        if tokens[0][1] == "-":
            tokens.pop(0)
            kind, word, _ = tokens.pop(0)
            bound, shown = _number(kind, word, quantity), f"baseline - {word}"
            if quantity.scale == 100 and bound >= 1:
                _refuse(f"no drop is larger than 100 percentage points, so that {quantity} never crosses {shown}")
    else:
        bound = _number(kind, word, quantity)
        if quantity.scale == 100 and 0 < bound < 0.01:
            _refuse(f"{quantity} is measured in percent, of which {word} is less than one: write {100 * bound * 100:g}")
        if bound == 0 and sign == "<":
            _refuse(f"{quantity} is never below 0")
    return Test(quantity, sign == "<=", relative, bound, f"{quantity} {sign} {shown}")


def _number(kind: str, word: str, quantity: Quantity) -> float:
    if kind != "number":
        _refuse(f"{_said(word)} where a number or baseline was expected")
    top, _, bottom = word.partition("/")
    value = float(top) / (float(bottom) or math.nan) if bottom else float(top)
    if not math.isfinite(value):
        _refuse(f"{word} is no finite number")
    if quantity.scale == 100 and value > 100:
        _refuse(f"{word} is above 100, but {quantity} is measured in percentage points")
    return value / quantity.scale


def _refuse(reason: str) -> NoReturn:
    raise UserError(f"--fail-if: {reason}; {_EXAMPLE}")
