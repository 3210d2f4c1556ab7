"""The events that a run reports to its caller, and the listener that receives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advbench.record import Flag
from advbench.trainer.validation import Scores


@dataclass(frozen=True)
class Began:
    """The run starts or resumes at `epoch` (from 0) of `epochs`, each of `steps` steps."""

    out: Path
    epoch: int
    epochs: int
    steps: int
    train_images: int
    validation_images: int
    device: str
    precision: str
    best: dict[str, Any] | None  # the best epoch's row of metrics.jsonl, None before the first epoch
    select: str  # the recipe's validation.select: by what the best epoch is chosen
    notes: tuple[str, ...] = ()  # on the network and the training images, for the user


@dataclass(frozen=True)
class StepDone:
    """`step` (from 1) of `steps` in `epoch` (from 1) is done. Sent at most twice a second."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_s: float
    seconds_left: float
    terms: dict[str, float]  # means over the epoch so far


@dataclass(frozen=True)
class EpochDone:
    """The epoch `epoch` (from 1) ended. `best`: whether it is the best so far; `seconds`: of training alone."""

    epoch: int
    epochs: int
    lr: float
    terms: dict[str, float]
    notes: dict[str, float]
    scores: Scores | None  # None without a validation split
    best: bool
    seconds: float
    images_per_s: float
    flag: Flag | None  # for catastrophic overfitting


class Watch:
    """Base class of listeners. Override the methods that you need."""

    def on_begin(self, event: Began) -> None:
        """Called once, before the first step."""

    def on_step(self, event: StepDone) -> None:
        """Called at most twice a second."""

    def on_epoch(self, event: EpochDone) -> None:
        """Called after each epoch's validation."""

    def stop(self) -> bool:
        """Called after every step. Return True to save the run and raise Interrupted."""
        return False
