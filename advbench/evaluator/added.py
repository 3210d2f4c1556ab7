"""A record that others' adversarial images lower, after the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import torch

from advbench.checkpoint import Loaded
from advbench.data.dataset import Dataset
from advbench.engine.kernels import exact_kernels
from advbench.eps import CORRUPTIONS, Eps
from advbench.errors import UserError
from advbench.evaluator import flags
from advbench.evaluator.adversarials import Adversarials, Tally, merge
from advbench.evaluator.evaluate import check_shapes, fitted
from advbench.evaluator.identity import agree, known_logits
from advbench.evaluator.journal import Journal
from advbench.evaluator.runner import Runner
from advbench.models.untouched import untouched
from advbench.record import Environment, Fates, Record, contradictions


class Added(NamedTuple):
    """The record that supersedes the other one, its fates, and what became of each file."""

    record: Record
    fates: Fates
    tallies: tuple[Tally, ...]


def added(
    record: Record,
    fates: Fates,
    given: Sequence[Adversarials],
    loaded: Loaded,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    command: Sequence[str] = (),
) -> Added:
    """The record that follows from `record` and its `fates` where the `given` files lower them.

    `loaded` and `data`: the model and the images of the record. It is the record of an evaluation that had been given
    these files, with the same id; its environment is that of the attacks, with the date of today, and `added`, the
    `command`. Raises UserError where nothing falls, and where the model answers otherwise than when it was measured.
    """
    if record.norm == CORRUPTIONS:
        raise UserError("corruptions are no perturbations in a ball: no adversarial images can lower their record")
    loaded = fitted(loaded, data)
    net, data = loaded.net.to(device), data.to(torch.device(device))
    with untouched(net), exact_kernels(torch.device(device)):
        data = check_shapes(net, data, loaded.abstain)
        if not agree(fates.logits, known_logits(loaded, data, record.seed)):
            raise UserError(f"{loaded.spec} answers otherwise than when record {record.id} was made: evaluate it again")
        runner = Runner(
            net, data, norm=record.norm, seed=record.seed, slots=record.engine.slots, precision="fp32",
            journal=Journal(), is_random=flags.is_random, rejects=loaded.abstain is not None,
        )  # fmt: skip
        merged = runner.halving_slots(
            lambda: merge(
                given, replace(fates, proved=None), oracle=runner.oracle, data=data, norm=record.norm, sizes=record.eps,
                attacks=len(record.attack), before=record.external, seed=record.seed,
            )
        )  # fmt: skip
    if not any(tally.felled for tally in merged.tallies):
        raise UserError(
            f"nothing falls further than in record {record.id}: {'; '.join(t.line for t in merged.tallies)}"
        )
    found = merged.fates
    if fates.proved is not None:
        if count := len(contradictions(found.fell, fates.proved)):
            raise UserError(
                f"a defect of advbench: {count} images are proved to stand at an eps at which these files fell them; "
                f"please report it with them and record {record.id}"
            )
        found = replace(found, proved=fates.proved)
    then = record.environment.model_dump()
    now = {"date": datetime.now(UTC).isoformat(timespec="milliseconds"), "added": list(command)}
    made = Record.of(
        found, model=record.model, dataset=record.dataset, norm=record.norm,
        eps=[Eps(point.eps_text, point.eps) for point in record.curve], attack=record.attack, engine=record.engine,
        seed=record.seed, flags=merged.flags(record.flags), seconds=record.seconds,
        forwards=None if record.forwards is None else record.forwards + merged.forwards,
        backwards=record.backwards, useful=record.useful, external=merged.files,
        environment=Environment(**{**then, **now}), supersedes=record.id,
    )  # fmt: skip
    return Added(made, found, merged.tallies)
