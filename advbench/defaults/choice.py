"""The choice of where to measure: which eps, and which images of the test split."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.eps import CORRUPTIONS, EXAMPLES, NORMS, Eps, as_eps, as_eps_list, example_size, parse_eps, parse_eps_list
from advbench.errors import UserError, reading, unknown
from advbench.files import read_list
from advbench.registry import entries

if TYPE_CHECKING:
    from torch import Tensor

    from advbench.data.dataset import Dataset
    from advbench.defaults.target import Target

GRID_FACTORS = ("0", "1/4", "1/2", "3/4", "1", "3/2", "2")  # times the training eps: the default grid
DEFAULT_IMAGES = 1000
_SUBSETS = "first, random:SEED or a file of positions in the test split"


@dataclass(frozen=True)
class Choice:
    """The rising grid `eps`, the `rows` (n,) of the test split, and `indices` as in a record. Each `about` says why."""

    eps: list[Eps]
    about_eps: str
    rows: Tensor
    indices: str | None
    about_rows: str

    @property
    def eps_text(self) -> str:
        return ",".join(map(str, self.eps))


def check_asked(*, eps: str | None, norm: str | None, n: int | None, subset: str) -> None:
    """Raise UserError for flags that are wrong for every model and dataset, before anything is loaded.

    With `norm` None, `eps` need only be valid for some norm.
    """
    if norm is not None and norm not in (*NORMS, CORRUPTIONS):
        raise unknown("norm", norm, NORMS)
    if eps is not None:
        parse_eps_list(eps, norm or "l2")
    check_count(n)
    _read_subset(subset)


def check_count(n: Any) -> None:
    """Raise UserError unless `n`, a number of images, is None or a whole number from 1."""
    if n is not None and (isinstance(n, bool) or not hasattr(n, "__index__") or n < 1):
        raise UserError(f"-n {n}: choose at least 1 image, a whole number")


def choose_points(target: Target, *, eps: str | None, n: int | None, subset: str) -> Choice:
    """The eps and images for one model, with defaults filled in. Raises UserError."""
    sizes, about_eps = choose_eps(eps, target.norm, target.train_eps, target.data.name)
    rows, indices, about_rows = choose_rows(target.data, n, subset)
    return Choice(sizes, about_eps, rows, indices, about_rows)


def choose_eps(given: Any, norm: str, train: Eps | None, dataset: str) -> tuple[list[Eps], str]:
    """The eps grid, and why: as `given`, else 0 to 2 x the training eps, else 0 to 2 x the dataset's usual one.

    `given`: None, or as in `eps.as_eps_list`. Raises UserError.
    """
    if given is not None:
        return as_eps_list(given, norm), "given"
    if norm == CORRUPTIONS:
        return [parse_eps(str(severity), norm) for severity in range(6)], "all severities"
    base, about = train, "the training eps"
    if base is None or base.value == 0:
        base, about = reference_eps(dataset, norm), f"the usual eps of {dataset}"
    if base is None:
        raise UserError(f"there is no usual {norm} eps for {dataset}: write a list such as --eps {EXAMPLES[norm]}")
    return grid(base, norm), f"0 to 2 x {about} {base}"


def choose_size(given: Any, target: Target) -> Eps:
    """The one eps that is given, else the training eps, else the dataset's usual one. Raises UserError."""
    images, norm = target.data.name, target.norm
    if given is not None:
        return as_eps(given, norm)
    size = target.train_eps or reference_eps(images, norm)
    if size is None:
        raise UserError(f"there is no usual {norm} eps for {images}: write a size such as --eps {example_size(norm)}")
    return size


def reference_eps(dataset: str, norm: str) -> Eps | None:
    """The eps that is usual for a dataset in `norm`, None if there is none."""
    entry = entries("data").get(dataset.partition(":")[0])
    text = entry.about.get("reference_eps", {}).get(norm) if entry else None
    return parse_eps(text, norm) if text else None


def grid(base: Eps, norm: str) -> list[Eps]:
    """GRID_FACTORS x `base`, written like it: 0, 2/255, 4/255, ... for 8/255. Linf eps above 1 become 1."""
    top, slash, bottom = base.text.partition("/")
    sizes: dict[float, Eps] = {}
    for factor in GRID_FACTORS:
        text = f"{_decimal(Fraction(top) * Fraction(factor))}{slash}{bottom}" if factor != "0" else "0"
        if norm == "linf" and Fraction(factor) * Fraction(top) > Fraction(bottom or 1):
            text = "1"
        size = parse_eps(text, norm)
        sizes.setdefault(size.value, size)
    return [sizes[value] for value in sorted(sizes)]


def choose_rows(data: Dataset, n: int | None, subset: str) -> tuple[Tensor, str | None, str]:
    """Rows (n,) of `data`, their short form in a record ("first:500", None if it lists positions), and why, in words.

    `random:SEED` draws without replacement; with one seed, a smaller draw is a part of every larger one. Raises
    UserError.
    """
    import torch

    from advbench import rng

    listed = _read_subset(subset)
    available = len(listed) if isinstance(listed, list) else len(data)
    check_count(n)
    if n is not None and n > available:
        what = f"{subset} names" if isinstance(listed, list) else f"the {data.split} split of {data.name} has"
        raise UserError(f"-n {n}: {what} {available} images: choose at most {available}")
    count = n or (available if isinstance(listed, list) else min(DEFAULT_IMAGES, available))
    if isinstance(listed, list):
        outside = next((index for index in listed if index >= len(data)), None)
        if outside is not None:
            raise UserError(f"{subset}: there is no image {outside} in {data.name}: choose from 0 to {len(data) - 1}")
        return torch.tensor(listed[:count]), None, f"{count} images of {subset}"
    if listed is None:
        whole = "all" if count == len(data) else "the first"
        return torch.arange(count), f"first:{count}", f"{whole} {count} images"
    drawn = rng.bits(rng.keys(listed, "subset", torch.arange(len(data))), (1,))[:, 0]
    rows = drawn.argsort(stable=True)[:count]
    return rows, f"random:{listed}:{count}", f"{count} images drawn by seed {listed}"


def _read_subset(subset: str) -> list[int] | int | None:
    """None for "first", the seed of "random:SEED", or the positions that a file lists. Raises UserError."""
    if subset == "first":
        return None
    kind, _, seed = subset.partition(":")
    if kind == "random" and seed.isdecimal() and seed.isascii() and len(seed) < 19:
        return int(seed)
    path = Path(subset)
    if not path.is_file():
        raise UserError(f"--subset {subset!r} is neither a file nor one of the forms: choose {_SUBSETS}")
    with reading(f"--subset {subset}"):
        found = read_list(path)
    if not all(type(position) is int for position in found):  # neither 1.9 nor true nor "3"
        raise UserError(f"--subset {subset}: it must list whole numbers, positions in the test split")
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise UserError(f"--subset {subset}: it must list at least one position, none below 0, none twice")
    return found


def _decimal(value: Fraction) -> str:
    """A fraction whose denominator divides a power of ten, as a decimal."""
    text = f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
