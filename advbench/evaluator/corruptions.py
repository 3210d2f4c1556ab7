"""Accuracy against the severity of common corruptions.

The curve is the worst case: a sample stands at a severity when the model is right under all 15 corruptions at that
severity and at all lower ones. The record also holds what the field reports: the error of each corruption at each
severity, and their mean. The mean is not normalised by another model's errors, because CIFAR has no agreed reference.

Of a model that may reject, a rejected corrupted image is no error: it counts as withstood, like any attacked image.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from advbench.attacks.corruptions import Corruption
from advbench.data.corruption_files import FOLDERS, PUBLISHED
from advbench.data.corruptions import SEVERITIES, corrupted
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.engine.losses import wrong
from advbench.evaluator.runner import Runner
from advbench.record import Corruptions, Fates, Flag


def curve(runner: Runner, attacks: Sequence[Attack], severities: Sequence[float]) -> tuple[Fates, Corruptions]:
    """Each sample's fate on the grid `severities`, and the error of each corruption at severities 1 to 5.

    Raises UserError, and Interrupted when the journal's `stop` returns true. Nothing is saved for resuming.
    """
    data, n = runner.data, len(runner.correct)
    first, by = np.full(n, np.inf), np.full(n, -1)
    errors: dict[str, tuple[float, float, float, float, float]] = {}
    began, forwards = time.perf_counter(), runner.oracle.forwards
    for number, attack in enumerate(attacks):
        assert isinstance(attack, Corruption)
        found: list[float] = []
        runner.journal.forecast.strike(number, n)
        corrupting = runner.journal.forecast.batch(attack.name, 0, n)
        for severity in SEVERITIES:
            corrupting(n * len(found) / len(SEVERITIES))
            runner.journal.poll()
            images = corrupted(data, attack.name, severity, source=attack.source, seed=runner.seed)
            logits = runner.halving_slots(
                lambda images=images: runner.oracle.logits(images, data.labels)  # type: ignore[misc]
            )
            runner.nonfinite += int((~logits.isfinite()).any(1).sum())
            fell = wrong(logits, data.labels).cpu().numpy()
            found.append(float(fell.mean()))
            sooner = fell & (severity < first)
            first[sooner], by[sooner] = severity, number
        corrupting(n)
        runner.journal.forecast.end()
        one, two, three, four, five = found
        errors[attack.name] = one, two, three, four, five
    runner.journal.seconds += time.perf_counter() - began
    runner.journal.forwards += runner.oracle.forwards - forwards
    place = np.searchsorted(np.asarray(severities), first)
    stands = runner.correct & (place == len(severities))
    place[~runner.correct], by[~runner.correct] = 0, -1
    place[stands], by[stands] = -1, -1
    every = [error for row in errors.values() for error in row]
    table = Corruptions(errors=errors, mce=sum(every) / len(every))
    return Fates(place.astype(np.int16), by.astype(np.int16)), table


def notes(attacks: Sequence[Attack], data: Dataset) -> list[Flag]:
    """A note on where the corrupted images come from."""
    sources = sorted({one.source for one in attacks if isinstance(one, Corruption)})
    detail = f"images of {', '.join(sources)}"
    side = "x".join(map(str, data.shape[1:]))
    if any(source in FOLDERS for source in sources):
        detail += f", matched by class folder and file name, and made {side} where they have another size"
    if any(source not in PUBLISHED for source in sources) and max(data.shape[1:]) < 64:
        detail += f", with ImageNet-C's constants: at {side} harsher than CIFAR-10-C's, so not comparable with it"
    return [Flag(name="corruptions", severity="note", detail=detail)]
