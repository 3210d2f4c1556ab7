"""The training loop, the same for all methods."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advbench import ranks
from advbench.checkpoint import BEST, LAST
from advbench.errors import Interrupted, UserError, explained
from advbench.files import locked
from advbench.models.base import straight_through
from advbench.recipe import Recipe
from advbench.trainer import folder
from advbench.trainer.events import Began, EpochDone, StepDone, Watch
from advbench.trainer.history import History
from advbench.trainer.session import Diverged, Session
from advbench.trainer.validation import Scores, catastrophic_overfitting, score

SAVE_SECONDS = 45.0  # between saves within an epoch: a killed run loses no more than this and one step
SAVE_PAUSE = 20.0  # a run is saved after an epoch if the last save is this many times its own duration ago
REPORT_SECONDS = 0.5  # between two StepDone events


def device_of(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda[:N]" names. With several processes "cuda" is a GPU of each one's own.

    Raises UserError for an unknown device, one that is not there, and one GPU for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and ranks.world() > 1:
        raise UserError(f"{name} is one GPU: several processes need --device cuda, a GPU each")
    if name == "cuda" and ranks.world() > 1:
        name = f"cuda:{ranks.local_rank()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: choose from auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name}: {torch.cuda.device_count()} CUDA devices are visible")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}: choose from auto, cpu, cuda, cuda:N")
    return device


def train(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    name: str | None = None,
    watch: Watch | None = None,
) -> Path:
    """Train by `recipe` into the run folder `out`, and return `out`.

    With `resume` an interrupted run continues from where it was saved (bit for bit on a CPU), a finished one is left as
    it is, and one of fewer epochs is trained on, unless more epochs would have changed what it did so far; `force`
    overwrites a run. `name`: what tables call the model. Within `ranks.joined` the processes share each batch, and only
    the first one writes and reports events to `watch`.

    Raises UserError for a recipe, device or folder that does not fit; Diverged, a UserError, for a loss that is not
    finite; Interrupted, after saving, when `watch.stop()` returns True.
    """
    resuming = ranks.first(lambda: folder.check(out, recipe, resume=resume, force=force))
    if resuming and ranks.first(lambda: folder.finished(out, recipe)):
        return out
    where = device_of(device)
    with explained("this recipe cannot be trained"):
        session = Session(recipe, where, fresh=not resuming)
    generators = [where] if where.type == "cuda" else []
    with ExitStack() as held, torch.random.fork_rng(devices=generators):
        ranks.first(lambda: held.enter_context(locked(out / folder.LOCK, timeout=0)))
        resuming = ranks.first(lambda: folder.check(out, recipe, resume=resume, force=force))
        if resuming and ranks.first(lambda: folder.finished(out, recipe)):  # by another process, meanwhile
            return out
        # For layers that draw random numbers, such as dropout. Everything else uses keys of its own.
        torch.manual_seed(recipe.seed ^ (ranks.rank() << 48))
        if resuming:
            history = folder.restore(out, session)
            ranks.first(lambda: folder.renew(out, recipe))
        else:
            ranks.first(lambda: folder.begin(out, recipe))
            history = History()
        _Run(session, history, out, watch or Watch(), name).go()
    return out


class _Run:
    def __init__(self, session: Session, history: History, out: Path, watch: Watch, name: str | None) -> None:
        self.session = session
        self.name = name
        self.history = history
        self.out = out
        self.watch = watch
        self.is_first = ranks.rank() == 0
        self.reported = self.ticked = time.monotonic()
        self.saved = self.reported
        self.save_took = 0.0
        before = history.seconds - sum(row["seconds"] for row in history.rows)
        self.epoch_seconds = max(0.0, before)  # of an epoch that goes on

    def go(self) -> None:
        session = self.session
        began = Began(
            out=self.out,
            epoch=session.epoch,
            epochs=session.recipe.epochs,
            steps=session.steps,
            train_images=len(session.data),
            validation_images=0 if session.held_out is None else len(session.held_out),
            device=str(session.device),
            precision=session.precision,
            best=self.history.best_row,
            select=session.recipe.validation.select,
            notes=(*session.notes, *(f"{session.data.name}: {text}" for text in session.data.notes)),
        )
        if self.is_first:
            self.watch.on_begin(began)
        averaged = [session.averaged.net] if session.averaged else []
        with straight_through(nn.ModuleList([session.nets.f, *averaged])):
            while session.epoch < session.recipe.epochs:
                self._epoch()
        self._save(done=True)

    def _epoch(self) -> None:
        session = self.session
        order = session.order()
        self.ticked = time.monotonic()
        while session.position < session.steps:
            session.step(order)
            self._after_step()
        terms, notes = session.means()
        self._tick()
        self._check()
        scores, lr = self._score(), session.lr
        session.end_epoch()
        row: dict[str, Any] = {"epoch": session.epoch, "lr": lr, "loss": terms["loss"]}
        row |= {"terms": {name: value for name, value in terms.items() if name != "loss"}, "notes": notes}
        row |= asdict(scores) if scores else {}
        row |= {"seconds": round(self.epoch_seconds, 3), "images_per_s": round(self._rate(), 1)}
        best = self.history.add(row, scores, session.recipe.validation.select)
        if best:
            self.history.keep(session.deployed, session.nets.parts)
        flag = catastrophic_overfitting(self.history.scores, session.data.num_classes, self.history.best_epoch)
        event = EpochDone(
            epoch=session.epoch,
            epochs=session.recipe.epochs,
            lr=lr,
            terms=terms,
            notes=notes,
            scores=scores,
            best=best,
            seconds=self.epoch_seconds,
            images_per_s=self._rate(),
            flag=flag,
        )
        self.epoch_seconds = 0.0
        if self.is_first:
            self.watch.on_epoch(event)
        due = len(self.history.rows) == 1 or time.monotonic() - self.saved > self.save_took * SAVE_PAUSE
        if ranks.any_of(due and self.is_first)[0]:
            self._save()

    def _after_step(self) -> None:
        session = self.session
        now = time.monotonic()
        due = self.is_first and now - self.saved > SAVE_SECONDS, self.is_first and now - self.reported > REPORT_SECONDS
        stop, save, report = ranks.any_of(self.watch.stop(), *due)
        if stop:
            self._interrupt()
        if save:
            self._save()
        if report:
            self.reported = now
            terms, _ = session.means()
            self._tick()
            self._check()
            event = StepDone(
                epoch=session.epoch + 1,
                epochs=session.recipe.epochs,
                step=session.position,
                steps=session.steps,
                images_per_s=self._rate(),
                seconds_left=self.history.seconds * (1 / session.progress - 1),
                terms=terms,
            )
            if self.is_first:
                self.watch.on_step(event)

    def _score(self) -> Scores | None:
        session = self.session
        if session.held_out is None:
            return None
        with session.counter.paused(), session.enough_memory():
            return score(
                session.deployed,
                session.held_out,
                session.recipe,
                batch_size=max(session.batch_size, 128),
                attacking=session.attacking,
                poll=self._poll,
            )

    def _poll(self) -> None:
        if ranks.world() == 1 and self.watch.stop():
            self._interrupt()

    def _interrupt(self) -> None:
        self._save()
        where = f"epoch {min(self.session.epoch + 1, self.session.recipe.epochs)} of {self.session.recipe.epochs}"
        raise Interrupted(f"stopped in {where}")

    def _save(self, *, done: bool = False) -> None:
        self._check()
        before = time.monotonic()
        folder.save(self.out, self.session, self.history, name=self.name, done=done)
        self.saved = time.monotonic()
        self.save_took = self.saved - before
        self.ticked += self.save_took  # saving is not training

    def _check(self) -> None:
        try:
            self.session.check()
        except Diverged as error:
            saved = [name for name in (BEST, LAST) if (self.out / name).is_file()]
            where = f"{' and '.join(saved)} in {self.out} were saved before that" if saved else "no epoch had ended"
            raise Diverged(f"{error}; {where}") from error

    def _tick(self) -> None:
        """Add the time since the last tick to the training time."""
        now = time.monotonic()
        self.history.seconds += now - self.ticked
        self.epoch_seconds += now - self.ticked
        self.ticked = now

    def _rate(self) -> float:
        return self.session.images / self.history.seconds if self.history.seconds else 0.0
