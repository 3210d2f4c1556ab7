"""Measurements for Python programs: from a model and images in any form to an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench import consent
from advbench.defaults.choice import check_count, choose_rows
from advbench.defaults.progress import Show, journal_of, reporting
from advbench.defaults.target import Target, pick_device, target_of
from advbench.eps import Eps

if TYPE_CHECKING:
    from advbench.data.dataset import Dataset
    from advbench.evaluator import Evaluation, Journal


def measure(
    model: Any,
    dataset: str | Dataset | tuple[Any, Any] | None,
    *,
    sizes: Callable[[Target], Sequence[Eps]],
    norm: str | None,
    n: int | None,
    subset: str,
    arch: str | None,
    settings: Any,
    device: str,
    journal: Journal | str | Path | None,
    resume: bool,
    progress: bool | Show | None,
    trust_pickle: bool,
    trust_code: bool,
    **fields: Any,
) -> Evaluation:
    """The evaluation of `model` at the `sizes` that are chosen for the target. Raises UserError.

    `n` and `subset` choose images of a named dataset by default as `choose_rows`, of a given one all. `settings`: those
    of the attacks; `fields`: the other fields of `Settings`.
    """
    from advbench.data.dataset import Dataset
    from advbench.data.tensors import from_tensors
    from advbench.evaluator import Settings, evaluate

    check_count(n)
    place = pick_device(device)
    with consent.also(pickle=trust_pickle, code=trust_code).given(), reporting(progress) as report:
        given = from_tensors(*dataset) if isinstance(dataset, tuple) else dataset
        target = target_of(
            model, given, arch=arch, norm=norm, device=place,
            fetching=lambda done, total, what: report(what, done, total),
        )  # fmt: skip
        whole = isinstance(given, Dataset) and n is None and subset == "first"
        rows, indices, _ = choose_rows(target.data, len(target.data) if whole else n, subset)
        chosen = Settings(
            attack_settings={} if settings is None else settings,
            eps=sizes(target),
            norm=target.norm,
            device=place,
            indices=None if isinstance(given, Dataset) else indices,
            **fields,
        )
        data = target.data.subset(rows)
        return evaluate(target.loaded, data, chosen, journal=journal_of(journal, report), resume=resume)
