"""What a run tells its caller while it goes, and what it asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advbench.record import Flag
from advbench.trainer.validation import Scores


@dataclass(frozen=True)
class Began:
    """The run starts, or goes on, at `epoch` (from 0) of `epochs`, with `steps` an epoch."""

    out: Path
    epoch: int
    epochs: int
    steps: int
    train_images: int
    validation_images: int
    device: str
    precision: str
    best: dict[str, Any] | None  # the row of metrics.jsonl of the best epoch so far


@dataclass(frozen=True)
class StepDone:
    """At most twice a second: the run stands after `step` (from 1) of `steps` of `epoch` (from 1)."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_s: float
    seconds_left: float
    terms: dict[str, float]  # means over the epoch so far


@dataclass(frozen=True)
class EpochDone:
    """An epoch (from 1) ended; `best` says whether it is the best so far."""

    epoch: int
    epochs: int
    lr: float
    terms: dict[str, float]
    notes: dict[str, float]
    scores: Scores | None  # None without a validation split
    best: bool
    seconds: float
    images_per_s: float
    flag: Flag | None  # catastrophic overfitting


class Watch:
    """Base of listeners; every method may be overridden, none need be."""

    def on_begin(self, event: Began) -> None:
        """Called once, before the first step."""

    def on_step(self, event: StepDone) -> None:
        """Called at most twice a second."""

    def on_epoch(self, event: EpochDone) -> None:
        """Called after each epoch's validation."""

    def stop(self) -> bool:
        """Asked after every step; True saves and raises Interrupted."""
        return False
