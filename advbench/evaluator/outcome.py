"""The attacks of a plan on a runner's own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advbench.evaluator import corruptions
from advbench.evaluator.plan import Plan
from advbench.evaluator.runner import Runner
from advbench.evaluator.threads import enough_threads
from advbench.record import Corruptions, Fates


@dataclass(frozen=True)
class Outcome:
    """Each image's fate and, of an evaluation under common corruptions only, the error of each corruption."""

    fates: Fates
    corruptions: Corruptions | None = None


def attack_images(runner: Runner, run: Plan, sizes: Sequence[float]) -> Outcome:
    """Attack the runner's own images on the eps grid `sizes`. Raises UserError and Interrupted."""
    forecast, images = runner.journal.forecast, int((runner.correct & runner.own).sum())
    points = sum(size > 0 for size in sizes)
    forecast.plan(run, runner.data.num_classes, images, points)
    with enough_threads(runner.oracle, runner.data, run.attacks):
        if run.curve == "severity":
            outcome = Outcome(*corruptions.curve(runner, run.attacks, sizes))
        elif run.curve == "nearest":
            outcome = Outcome(runner.nearest(run.every, sizes))
        else:
            outcome = Outcome(runner.curve(run, sizes))
    forecast.attacked()
    return outcome
