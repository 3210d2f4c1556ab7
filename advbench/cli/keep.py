"""Where records and unfinished evaluations are kept. Loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from advbench import ranks
from advbench.cli.console import Bar, Screen
from advbench.engine.search import Search
from advbench.evaluator import Journal
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

    def begin(self, asked: dict[str, Any], *, resume: bool, number: int = 0, of: int = 1) -> bool:
        if resume:
            for record in load_records(self._folder)[0]:
                if answers(record, asked):
                    place = next(self._folder.rglob(f"{record.id}.json"))
                    raise AlreadyDone(*load_record(place))
        return super().begin(asked, resume=resume, number=number, of=of)


def answers(record: Record, asked: dict[str, Any]) -> bool:
    """Whether `record` is the answer to what a journal was begun with: whatever slots it took."""
    return {**asked, "engine": {**asked["engine"], "slots": record.engine.slots}} == {
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
    """Hold the journal: UserError where another process is at the same evaluation, whose journal it would overwrite.
    Of the processes of a launcher the first holds it for all."""
    lock = journal.with_name(f".lock{journal.name}")  # no name that is taken for a journal
    with ExitStack() as held:

        def hold() -> None:
            held.enter_context(locked(lock, timeout=0))

        ranks.first(hold)
        try:
            yield
        finally:
            if ranks.rank() == 0:
                lock.unlink(missing_ok=True)


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
