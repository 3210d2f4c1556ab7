"""Perturbation sizes (eps): as the user wrote them, and as float64."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from advbench.errors import UserError, shortened

NORMS = ("linf", "l2", "l1", "l0", "fourier-linf")
TRAINING_NORMS = tuple(norm for norm in NORMS if norm != "l0")
EXAMPLES = {  # of a list in each norm, for messages and documents
    "linf": "0,4/255,8/255",
    "l2": "0,0.25,0.5",
    "l1": "0,6,12",
    "l0": "0,5,10",
    "fourier-linf": "0,4/255,8/255",
}
CORRUPTIONS = "corruptions"  # used in place of a norm; its eps are severities
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?"
_FORM = re.compile(rf"({_NUMBER})(?:/({_NUMBER}))?")


@dataclass(frozen=True)
class Eps:
    """A perturbation size for images in [0, 1]: `text` as written ("8/255") and its `value` in float64."""

    text: str
    value: float

    @property
    def plain(self) -> str:
        """The one spelling of its value: a short decimal (0.1), else a fraction of 255 (8/255), else every digit."""
        decimal = f"{self.value:g}"
        if float(decimal) == self.value:
            return decimal
        top = round(self.value * 255) if self.value <= 255 else 0
        return f"{top}/255" if top / 255 == self.value else repr(self.value)

    def __str__(self) -> str:
        return self.text


def parse_eps(text: str, norm: str = "linf") -> Eps:
    """Read "8/255", "0.031" or "0"; for corruptions, a severity from 0 to 5.

    Raises UserError when `text` is not a non-negative finite number or fraction, is above 1 for linf, is not whole for
    l0, or is not a severity for corruptions.
    """
    written = text.strip()
    if norm == CORRUPTIONS:
        if re.fullmatch("[0-5]", written) is None:
            raise UserError(f"{text!r} is no severity: in place of eps, corruptions have 0 (none), 1, 2, 3, 4 and 5")
        return Eps(written, float(written))
    match = _FORM.fullmatch(written)
    if match is None and norm == "l0":
        raise UserError(_no_count(text))
    if match is None:
        raise UserError(f"eps {text!r} is not a size: write a number such as 0.031 or a fraction such as 8/255")
    top, bottom = float(match[1]), float(match[2]) if match[2] else 1.0
    if bottom == 0:
        raise UserError(f"eps {text!r} divides by zero: write a number such as 0.031 or a fraction such as 8/255")
    value = top / bottom
    if not math.isfinite(value):
        raise UserError(f"eps {text!r} is not finite: write a number such as 0.031 or a fraction such as 8/255")
    if norm == "linf" and value > 1:
        hint = f"; {written}/255 was probably meant" if match[2] is None and value <= 255 else ""
        raise UserError(f"eps {text!r} is above 1, but linf eps lies in [0, 1] as inputs do{hint}")
    if norm == "l0" and value != int(value):
        raise UserError(_no_count(text))
    return Eps(written, value)


def _no_count(text: str) -> str:
    return f"eps {text!r} is no count: in l0 it is a whole number of elements (C x H x W), such as 10"


def example_size(norm: str) -> str:
    """A size in `norm`, the largest of its EXAMPLES."""
    return EXAMPLES[norm].rpartition(",")[2]


def as_eps(size: Any, norm: str = "linf") -> Eps:
    """A size in any form: an Eps, a text as `parse_eps` reads it, or a number, which is written plainly (8/255, 0.1).

    A number in float32 is the plainest that rounds to it. Raises UserError.
    """
    if isinstance(size, Eps | str):
        return parse_eps(str(size), norm)
    number = size.item() if hasattr(size, "item") and getattr(size, "ndim", 0) == 0 else size
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise UserError(f"eps {shortened(size)} is not a size: write a number such as 0.031, or a text such as '8/255'")
    return parse_eps(Eps("", _rounded_to(float(number), str(getattr(size, "dtype", "")))).plain, norm)


def _rounded_to(number: float, kind: str) -> float:
    """The plainest number that rounds to `number` in the type `kind` of arrays or tensors, where that is float32."""
    if kind.removeprefix("torch.") != "float32" or not 0 < number < 1e30:
        return number
    first, *more = (float(f"{number:.{digits}g}") for digits in range(3, 10))
    plain = (first, round(number * 255) / 255, *more)
    return next((value for value in plain if struct.unpack("f", struct.pack("f", value)) == (number,)), number)


def as_eps_list(sizes: Any, norm: str = "linf") -> list[Eps]:
    """One size, a comma list, or several sizes in any form, sorted by value, each value once. Raises UserError."""
    if isinstance(sizes, str):
        return parse_eps_list(sizes, norm)
    several = isinstance(sizes, Iterable) and getattr(sizes, "ndim", 1) > 0
    found: dict[float, Eps] = {}
    for size in sizes if several else [sizes]:
        eps = as_eps(size, norm)
        found.setdefault(eps.value, eps)
    if not found:
        raise UserError(f"no eps was given: write a list such as {EXAMPLES.get(norm, '1,3,5')!r}")
    return [found[value] for value in sorted(found)]


def parse_eps_list(text: str, norm: str = "linf") -> list[Eps]:
    """Read a comma list of eps, sorted by value. Equal ones are kept once, as first written. Raises UserError."""
    found: dict[float, Eps] = {}
    for part in text.split(","):
        eps = parse_eps(part, norm)
        found.setdefault(eps.value, eps)
    return [found[value] for value in sorted(found)]
