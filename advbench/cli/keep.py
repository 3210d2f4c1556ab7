"""Saving records, and the journals of unfinished evaluations. Loads torch."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advbench import ranks
from advbench.cli.bar import Bar
from advbench.cli.console import Screen
from advbench.errors import UserError
from advbench.evaluator import Forecast, Journal, Series, answers
from advbench.evaluator.identity import agree
from advbench.files import check_writable, locked
from advbench.record import Fates, Record, confirm, load_record, load_records, record_path


class AlreadyDone(Exception):
    """The evaluation was finished before; this is its record."""

    def __init__(self, record: Record, fates: Fates) -> None:
        super().__init__(record.id)
        self.record, self.fates = record, fates


class KeptJournal(Journal):
    """A journal that, when resuming, raises AlreadyDone if `folder` has the finished record."""

    def __init__(self, path: Path, folder: Path, **rest: Any) -> None:
        super().__init__(path, **rest)
        self._folder = folder / "records"

    def begin(self, asked: dict[str, Any], *, resume: bool, number: int = 0, of: int = 1) -> bool:
        if resume:
            for one in load_records(self._folder)[0]:
                if answers(one, asked):
                    record, fates = load_record(next(self._folder.rglob(f"{one.id}.json")))
                    if agree(fates.logits, self.logits):
                        raise AlreadyDone(record, fates)
        return super().begin(asked, resume=resume, number=number, of=of)


def journal_path(folder: Path, question: str) -> Path:
    """The hidden file beside the records in `folder` from which the evaluation of this question can be resumed."""
    return folder / "records" / f".{question}.journal"


def of_other_questions(journal: Path) -> list[Path]:
    """The journals beside `journal` in which other questions about the same model were begun."""
    model = glob.escape(journal.name.partition("-")[0])
    return sorted(path for path in journal.parent.glob(f"{model}-*.journal") if path != journal)


@contextmanager
def in_use(journal: Path) -> Iterator[None]:
    """Lock the journal. Raises UserError if another process runs the same evaluation, since each would overwrite the
    other's journal. Under torchrun the first process holds the lock for all."""
    lock = journal.with_name(f".lock{journal.name}")  # a name that no search for journals finds
    with ExitStack() as held:
        ranks.first(lambda: held.enter_context(locked(lock, timeout=0)))
        yield


def save(record: Record, fates: Fates, folder: Path, *, publish: bool, screen: Screen, fresh: bool = True) -> Path:
    """Save the record in `folder`, with `publish` also in its tables; the path of its JSON. Raises UserError.

    `fresh`: whether it was measured now, and not found in `folder`. A record that was there stays, and the user is
    warned where it has other flags.
    """
    if not fresh:
        confirm(record_path(folder, record), datetime.now(UTC).isoformat(timespec="milliseconds"))
    if publish:
        import advbench.leaderboard as leaderboard

        path, damaged = leaderboard.publish(record, fates, folder)
        for damage in damaged:
            screen.warn(f"left out of the tables: {damage.reason}")
    else:
        path = record.save(folder, fates)
    kept, found = (_flags(one) for one in (load_record(path)[0], record))
    if kept != found:
        differing = [f"only there {', '.join(sorted(kept - found))}"] if kept - found else []
        differing += [f"only now {', '.join(sorted(found - kept))}"] if found - kept else []
        screen.warn(f"record {record.id} was there before, and keeps its flags: {'; '.join(differing)}")
    return path


def _flags(record: Record) -> set[str]:
    return set(map(record.words, record.flags))


def check_baseline(file: Path) -> None:
    """Raise UserError where `save_baseline` could not write `file`, or would replace something else than a baseline."""
    if file.suffix != ".json":
        raise UserError(
            f"--save-baseline {file}: name a .json file, such as baseline.json; an .npz is written beside it"
        )
    if "records" in file.absolute().parent.parts[-3:]:
        raise UserError(f"--save-baseline {file}: records are never edited, name a file outside of their folder")
    check_writable(file.parent)
    if file.exists():
        try:
            load_record(file)
        except UserError as error:
            raise UserError(f"--save-baseline {file} would replace what is no baseline ({error}): remove it") from error
    elif file.with_suffix(".npz").exists():
        raise UserError(f"--save-baseline {file} would replace {file.with_suffix('.npz')}: remove it or name another")


def save_baseline(record: Record, fates: Fates, file: Path, screen: Screen) -> None:
    """Write the record as the baseline of gates, in place of an older one. Raises UserError."""
    record.save_as(file, fates)
    doubts = [flag.name for flag in record.doubts()]
    if doubts:
        screen.warn(f"gates will not believe the baseline {file} where these flags count: {', '.join(doubts)}")
    screen.note(f"baseline {file}")


def search_progress(bar: Bar, series: Series | None = None) -> Callable[[Forecast], None]:
    """A callback for `Journal` that shows an evaluation, one of a `series`, in a bar."""
    whole = series or Series()
    return lambda forecast: bar.update(forecast.stage, lambda: whole.outlook(forecast))
