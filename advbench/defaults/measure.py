"""Measurements for Python programs: from a model and images in any form to an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench import consent
from advbench.defaults.choice import check_count, choose_rows
from advbench.defaults.progress import Show, journal_of, reporting
from advbench.defaults.target import Target, pick_device, target_of
from advbench.eps import Eps
from advbench.errors import UserError

if TYPE_CHECKING:
    import torch

    from advbench.evaluator import Evaluation, Journal
    from advbench.models.normalized import Written


def measure(
    model: Any,
    dataset: Any,
    *,
    sizes: Callable[[Target], Sequence[Eps]],
    norm: str | None,
    n: int | None,
    subset: str,
    classes: Mapping[str, Any],
    arch: str | None,
    mean: Written,
    std: Written,
    abstain: str | None,
    settings: Any,
    device: str | torch.device,
    journal: Journal | str | Path | None,
    resume: bool,
    progress: bool | Show | None,
    trust_pickle: bool,
    trust_code: bool,
    **fields: Any,
) -> Evaluation:
    """The evaluation of `model` at the `sizes` that are chosen for the target. Raises UserError.

    `classes`: what `from_object` is told of one's own images and labels; None: nothing. `n` and `subset` choose
    images of a named dataset by default as `choose_rows`, of a given one all. `settings`: those of the attacks;
    `fields`: the other fields of `Settings`.
    """
    from advbench.data.dataset import Dataset
    from advbench.data.tensors import from_object
    from advbench.evaluator import Settings, evaluate

    check_count(n)
    place = pick_device(device)
    with consent.also(pickle=trust_pickle, code=trust_code).given(), reporting(progress) as report:
        told = {word: value for word, value in classes.items() if value is not None}
        named = dataset is None or isinstance(dataset, str)
        if told and named:
            raise UserError(f"a named dataset says what its classes are: leave out {', '.join(told)}")
        first = n if subset == "first" else None
        given = dataset if named else from_object(dataset, n=first, **told)
        target = target_of(
            model, given, arch=arch, norm=norm, device=place, mean=mean, std=std, abstain=abstain,
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
