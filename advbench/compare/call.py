"""Comparison as a function of what a Python program has: names, and results of `advbench.evaluate`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from advbench.compare.comparison import compare
from advbench.compare.results import Comparison
from advbench.compare.sides import FORMS, Measured, Side, read_some
from advbench.errors import UserError, shortened
from advbench.public import checked
from advbench.record import Fates, Record


class Result(Protocol):
    """A result of `advbench.evaluate`."""

    @property
    def record(self) -> Record: ...
    @property
    def fates(self) -> Fates: ...


Model = str | Path | Result


@checked
def compare_models(
    *models: Model,
    baseline: Model | None = None,
    fail_if: str | None = None,
    alpha: float = 0.05,
    strict: bool = False,
    unpaired: bool = False,
    different_attacks: bool = False,
    allow_flags: Collection[str] = (),
    dataset: str | None = None,
    norm: str | None = None,
) -> Comparison:
    """Compare models that were measured on the same images, each with the baseline, by default the first.

    - `models`: run folders, records, ids, specs of models measured before (as `advbench compare` takes them), or
      results of `advbench.evaluate`.
    - `fail_if`: a gate, such as "acc@8/255 < baseline - 0.5 or clean < 80", whose verdict is `.failed` and `.verdict`;
      `alpha` is its level of significance, `strict` leaves the test out, `allow_flags` accepts flags by name.
    - `unpaired`, `different_attacks`: allow other images; other attacks, engines and norms.
    - `dataset`, `norm`: use only records of these.

    The result has `.frame()`, `.rows`, `.notes`, `.verdict` (one line) and `.report` (Markdown). Raises UserError, and
    Refused, which is one, where models cannot be compared or are not believed.
    """
    if isinstance(allow_flags, str):
        allow_flags = [name.strip() for name in allow_flags.split(",")]
    return compare(
        [side_of(model, dataset, norm) for model in models],
        None if baseline is None else side_of(baseline, dataset, norm),
        fail_if=fail_if,
        alpha=alpha,
        strict=strict,
        unpaired=unpaired,
        different_attacks=different_attacks,
        allow_flags=allow_flags,
    )


def side_of(model: Model, dataset: str | None = None, norm: str | None = None) -> Side:
    """The measurements that `model` stands for. Raises UserError."""
    if isinstance(model, str | Path):
        return read_some(str(model), dataset, norm)
    if not isinstance(getattr(model, "record", None), Record) or not isinstance(getattr(model, "fates", None), Fates):
        raise UserError(f"{shortened(model)} is no measurement: give {FORMS}, or a result of advbench.evaluate")
    record = model.record
    return Side(f"{record.model.title} ({record.id[:8]})", (Measured(record, model.fates, Path(f"{record.id}.json")),))
