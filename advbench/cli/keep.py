"""Where records and unfinished evaluations are kept. Loads torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from advbench import ranks
from advbench.attacks.search import Search
from advbench.cli.console import Bar, Screen
from advbench.errors import UserError
from advbench.evaluator import Journal
from advbench.evaluator.share import agreed
from advbench.files import locked
from advbench.record import Fates, Record, load_record, load_records, slug


class AlreadyDone(Exception):
    """What is asked for has been measured: here is its record."""

    def __init__(self, record: Record, fates: Fates) -> None:
        super().__init__(record.id)
        self.record, self.fates = record, fates


class KeptJournal(Journal):
    """A journal that on --resume first looks for the finished record in `folder`, and then raises AlreadyDone."""

    def __init__(self, path: Path, folder: Path, **rest: Any) -> None:
        super().__init__(path, **rest)
        self._folder = folder / "records"

    def begin(self, asked: dict[str, Any], *, resume: bool) -> bool:
        if resume:
            for record in load_records(self._folder)[0]:
                if answers(record, asked):
                    place = next(self._folder.rglob(f"{record.id}.json"))
                    raise AlreadyDone(*load_record(place))
        return super().begin(asked, resume=resume)


def answers(record: Record, asked: dict[str, Any]) -> bool:
    """Whether `record` is the answer to what a journal was begun with: whatever slots and processes it took."""
    mine = {key: value for key, value in asked.items() if key != "shard"}
    return {**mine, "engine": {**asked["engine"], "slots": record.engine.slots}} == {
        "model": record.model.weights_sha256,
        "images": record.dataset.images_sha256,
        "norm": record.norm,
        "eps": record.eps,
        "attacks": [ref.model_dump(mode="json") for ref in record.attack],
        "engine": record.engine.model_dump(mode="json"),
        "seed": record.seed,
        "advbench": record.environment.advbench,
    }


def journal_path(folder: Path, spec: str, dataset: str, norm: str, attacks: Sequence[str]) -> Path:
    """The hidden file beside the records in `folder` from which such an evaluation can be resumed."""
    name = "-".join(slug(part) for part in (spec, dataset, norm, "+".join(attacks)))
    return folder / "records" / f".{name}.journal"


@contextmanager
def in_use(journal: Path) -> Iterator[None]:
    """Hold the journal: UserError where another process is at the same evaluation, whose journal it would overwrite."""
    lock = journal.with_name(f".lock{journal.name}")  # no name that `shard_path` would count as a journal
    with locked(lock, timeout=0):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def shard_path(path: Path, resume: bool) -> Path:
    """The journal of this process. UserError where, to be resumed, there are only those of another number of them."""

    def check() -> Path:
        begun = sum(1 for _ in path.parent.glob(f"{glob.escape(path.name)}.rank*"))
        if resume and ranks.world() == 1 and begun and not path.exists():
            raise UserError(f"{path} was begun by torchrun --nproc-per-node {begun}: resume it so, or use --force")
        if resume and ranks.world() > 1 and path.exists():
            raise UserError(f"{path} was begun by a single process: resume it without torchrun, or use --force")
        return path if ranks.world() == 1 else path.with_name(f"{path.name}.rank{ranks.rank()}")

    return agreed(check)


def check_writable(folder: Path) -> None:
    """UserError, before hours are spent, where `folder` is no folder or could not be written; makes nothing."""
    place = _nearest(folder)
    if not place.is_dir():
        raise UserError(f"cannot write {folder}: {place} is a file: choose another folder")
    if not writable(folder):
        raise UserError(f"cannot write {folder}: no permission to write in {place}: choose another folder")


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or it itself."""
    return os.access(_nearest(folder), os.W_OK | os.X_OK)


def _nearest(folder: Path) -> Path:
    """`folder`, or the first above it that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


def save(record: Record, fates: Fates, folder: Path, *, publish: bool, screen: Screen) -> Path:
    """Put the record into `folder`, with `publish` into its tables too; the path of its JSON. Raises UserError."""
    if not publish:
        return record.save(folder, fates)
    from advbench import leaderboard

    published = leaderboard.publish(record, fates, folder)
    for damage in published.damaged:
        screen.warn(f"left out of the tables: {damage.reason}")
    return published.path


def shown(bar: Bar) -> Callable[[str, Search], None]:
    """The progress of a journal, in a bar: attacks that ended, and samples that fell."""

    def tell(search: Search) -> tuple[float, float, str]:
        slots = torch.tensor([item >= 0 for item in search.item])
        shares = search.state.i.cpu()[slots] / (search.attack.steps + 1)
        fell = search.verdicts.fell
        return (
            search.finished + float(shares.clamp(max=1).sum()),
            len(search.queue),
            f"{fell.sum()} of {len(fell)} fell",
        )

    return lambda stage, search: bar.update(stage, lambda: tell(search))
