"""The progress of a training run on the screen. Loads torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from advbench.cli.bar import Bar
from advbench.cli.stop import Stop
from advbench.errors import UserError
from advbench.outlook import Outlook, Steady
from advbench.trainer import Began, EpochDone, StepDone, Watch

FEW_HELD_OUT = 100
_LINE_SECONDS = 5.0  # between two lines about epochs if there is no live bar


class ScreenWatch(Watch):
    """A bar for the run, lines for its epochs, and with `log` TensorBoard's event files in the run folder.

    `runs`: those of the whole command, of which this is the next one.
    """

    def __init__(self, bar: Bar, stop: Stop, *, log: str | None = None, runs: Runs | None = None) -> None:
        self._bar, self._stop, self._log, self._runs = bar, stop, log, runs or Runs()
        self._writer: Any = None
        self._last_line = -_LINE_SECONDS
        self._best = ""

    def stop(self) -> bool:
        return self._stop()

    def on_begin(self, event: Began) -> None:
        if self._log is not None:
            self._writer = writer(event.out / "tensorboard")
        if event.best and "robust" in event.best:
            self._best = _best(event.best["clean"], event.best["robust"], event.best["epoch"])
        for note in event.notes:
            self._bar.line(f"note: {note}")
        held_out = event.validation_images
        self._bar.line(f"{event.train_images:,} training images, {held_out:,} held out for validation")
        if not held_out:
            self._bar.line("warning: no images are held out: the last epoch becomes the model")
        elif held_out < FEW_HELD_OUT and event.select != "last":
            self._bar.line(
                f"warning: few held-out images ({held_out}) choose the best epoch, largely by chance: raise "
                "validation.fraction, or set validation.select=last"
            )
        self._runs.begin(event.epoch / event.epochs)
        if event.epoch:
            self._bar.line(f"resuming after epoch {event.epoch} of {event.epochs}")

    def on_step(self, event: StepDone) -> None:
        done = ((event.epoch - 1) * event.steps + event.step) / (event.epochs * event.steps)
        terms = ", ".join(f"{name} {value:.3f}" for name, value in event.terms.items())
        what = f"epoch {event.epoch} of {event.epochs}"
        more = f"{event.images_per_s:,.0f} images/s{self._best}, {terms}"
        self._bar.update(what, lambda: self._runs.outlook(what, done, more))

    def on_epoch(self, event: EpochDone) -> None:
        if self._writer is not None:
            scores = asdict(event.scores) if event.scores else {}
            for name, value in {**event.terms, **event.notes, **scores, "lr": event.lr}.items():
                self._writer.add_scalar(name, value, event.epoch)
            self._writer.add_scalar("images_per_s", event.images_per_s, event.epoch)
            self._writer.flush()  # else a stopped run would lose it
        if event.best and event.scores is not None:
            self._best = _best(event.scores.clean, event.scores.robust, event.epoch)
        now = time.monotonic()
        last = event.epoch == event.epochs
        if self._bar.live or last or event.flag or now - self._last_line > _LINE_SECONDS:
            self._last_line = now
            self._bar.line(epoch_line(event))
        if last and self._writer is not None:
            self._writer.close()


class Runs:
    """Runs that follow one another, of expected `works` in any unit: 0 for one that is finished already."""

    def __init__(self, works: Sequence[float] = (1.0,)) -> None:
        self._works, self._pace = list(works), Steady()
        self.number = 0  # of the one that is under way, from 0

    def begin(self, done: float) -> None:
        """The run under way begins, of which the share `done` was done before."""
        if not any(self._works[: self.number]):
            self._pace = Steady(self._share(done))

    def outlook(self, what: str, done: float, more: str) -> Outlook:
        """The outlook on all runs when the share `done` of the one under way is done."""
        count = len(self._works)
        run = f"run {self.number + 1} of {count}, " if count > 1 else ""
        return self._pace.outlook(f"{run}{what}", self._share(done), more)

    def _share(self, done: float) -> float:
        return (sum(self._works[: self.number]) + self._works[self.number] * done) / sum(self._works)


def epoch_line(event: EpochDone) -> str:
    """One line about an epoch: loss, accuracies on the held-out images, images per second."""
    parts = [f"epoch {event.epoch}/{event.epochs}", f"loss {event.terms['loss']:.4f}"]
    if event.scores is not None:
        parts += [f"clean {event.scores.clean:.1%}", f"PGD {event.scores.robust:.1%}"]
    parts.append(f"{event.images_per_s:,.0f} images/s")
    if event.best:
        parts.append("best so far")
    if event.flag is not None:
        parts.append(f"{event.flag.name}: {event.flag.detail}")
    return "  ".join(parts)


def _best(clean: float, robust: float, epoch: int) -> str:
    return f", best clean {clean:.1%} PGD {robust:.1%} (epoch {epoch})"


def writer(folder: Path) -> Any:
    """TensorBoard's writer into `folder`. Raises UserError if the package is missing."""
    check_log()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder)


def check_log() -> None:
    """Raise UserError if TensorBoard's package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError("--log tensorboard needs a package: pip install tensorboard, or 'advbench[log]'") from error
