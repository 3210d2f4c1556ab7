"""The cost of a run, measured on a few of its steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

from advbench.errors import explained
from advbench.recipe import Recipe
from advbench.trainer.loop import device_of
from advbench.trainer.session import Session
from advbench.trainer.validation import score


@dataclass(frozen=True)
class Estimate:
    """The cost of a run. Passes are counted for each training image seen; peak memory is in bytes."""

    epochs: int
    steps: int  # of an epoch
    epoch_seconds: float  # of training and validation
    total_seconds: float
    images_per_s: float
    forwards_per_image: float
    backwards_per_image: float
    peak_memory: int
    device: str
    precision: str


def estimate(recipe: Recipe, *, device: str = "auto", warm: int = 2, timed: int = 3) -> Estimate:
    """Take `warm` steps, then time `timed` more and one batch of validation. Writes nothing.

    Raises UserError as `train` does for a recipe or device that does not fit.
    """
    with explained("this recipe cannot be trained"):
        session = Session(recipe, device_of(device))
    order = session.order()
    for _ in range(warm):
        session.step(order)
        session.position = 0
    session.means()
    before = session.counter.forwards, session.counter.backwards
    start = time.monotonic()
    for _ in range(timed):
        session.step(order)
        session.position = 0
    session.means()  # this waits for the device
    step = (time.monotonic() - start) / timed
    seen = timed * session.batch_size
    forwards, backwards = session.counter.forwards - before[0], session.counter.backwards - before[1]
    validation = 0.0
    if session.held_out is not None:
        batch = min(max(session.batch_size, 128), len(session.held_out))
        start = time.monotonic()
        some = session.held_out.subset(range(batch))
        with session.enough_memory():
            score(session.deployed, some, recipe, batch_size=batch, attacking=session.attacking)
        validation = (time.monotonic() - start) * len(session.held_out) / batch
    epoch = step * session.steps + validation
    return Estimate(
        epochs=recipe.epochs,
        steps=session.steps,
        epoch_seconds=epoch,
        total_seconds=epoch * recipe.epochs,
        images_per_s=session.batch_size / step,
        forwards_per_image=forwards / seen,
        backwards_per_image=backwards / seen,
        peak_memory=session.peak_memory,
        device=str(session.device),
        precision=session.precision,
    )
