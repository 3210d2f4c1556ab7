"""What an evaluation has done so far, on disk, so that a killed one goes on where it was.

An evaluation is a fixed sequence of searches, each decided by the verdicts before it. The journal keeps the
verdicts of those that ended and a snapshot of the one under way; on resuming, the ended ones are not
run again. It belongs to one question: another one is refused, with the differences named.
"""

from __future__ import annotations

import glob
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from advbench.engine.search import Search, Verdicts
from advbench.errors import Interrupted, UserError
from advbench.files import clear_leftovers, read_sealed, write_sealed

_EVERY = 20.0  # seconds between two saves; a kill loses at most this and one step
_LONG = 1.0  # seconds of a save; one that takes longer is made as much less often: a twentieth of the time goes into it


class Journal:
    """`path` None: nothing is kept. `stop` is asked after every round; when true, save and raise Interrupted.

    `progress` is told the stage's name and its search after every round. `seconds`, `forwards` and
    `backwards` add up over all searches and all goes. `halvings` are the slots that were left each time memory ran
    out, with the number of hits before. `check` is called after every round too, and may raise. Once the sums are those
    of several processes they are no longer its `own`, and nothing more is saved.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[str, Search], None] = lambda stage, search: None,
    ) -> None:
        self.path, self._stop, self._progress = path, stop, progress
        self._file = path
        self.seconds, self.forwards, self.backwards = 0.0, 0, 0
        self.asked: dict[str, Any] = {}
        self._shard: dict[str, Any] = {}
        self._ended: list[dict[str, Any]] = []
        self._under_way: dict[str, Any] | None = None
        self._next = 0
        self._running: Search | None = None
        self._saved_at, self._took = time.monotonic(), 0.0
        self.halvings: list[tuple[int, int]] = []
        self.check: Callable[[], None] = lambda: None
        self.own = True

    @property
    def slots(self) -> int | None:
        """The slots that are left after memory ran out; None where it did not."""
        return self.halvings[-1][0] if self.halvings else None

    def saved(self) -> dict[str, Any] | None:
        """What was asked of the evaluation that is saved, None where none is. Raises UserError when it is damaged."""
        if self.path is None or not self.path.exists():
            return None
        asked: dict[str, Any] = _load(self.path)["asked"]
        return asked

    def file(self, number: int, of: int) -> Path | None:
        """Where process `number` of `of` keeps what it has done: the first one at `path`, the others beside it."""
        if self.path is None or number == 0:
            return self.path
        return self.path.with_name(f"{self.path.name}.part{number}of{of}")

    def halve(self, slots: int) -> None:
        """Memory ran out: note that `slots` are left, and how many hits there are by now."""
        kept = [ended["fell"] for ended in self._ended]
        if self._running is not None:
            kept.append(self._running.verdicts.fell)
        self._running = None
        self.halvings.append((slots, sum(int(fell.sum()) for fell in kept)))

    def begin(self, asked: dict[str, Any], *, resume: bool, number: int = 0, of: int = 1) -> bool:
        """Start on the question `asked` (plain values) as process `number` of `of`, or take up what is saved: whether
        there was something.

        Raises UserError when what is saved belongs to another question, naming the differences, or is damaged.
        """
        self.asked, self._file = asked, self.file(number, of)
        self._shard = {"shard": {"rank": number, "of": of}} if of > 1 else {}
        self._ended, self._under_way, self.halvings = [], None, []
        self.seconds, self.forwards, self.backwards = 0.0, 0, 0
        if not resume or self._file is None or not self._file.exists():
            return False
        saved = _load(self._file)
        was, now = _leaves(saved["asked"]), _leaves({**asked, **self._shard})
        different = [
            f"{key} was {was.get(key)!r}, is {now.get(key)!r}"
            for key in sorted({*was, *now})
            if was.get(key) != now.get(key)
        ]
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise UserError(
                f"{self._file} belongs to another evaluation: {'; '.join(different[:3])}{more}; "
                "drop --resume to start over"
            )
        self._ended, self._under_way = saved["ended"], saved["under_way"]
        self.seconds, self.forwards, self.backwards = saved["cost"]
        self.halvings = [(slots, fallen) for slots, fallen in saved["halvings"]]
        return True

    def run(self, stage: str, search: Search) -> Verdicts:
        """The verdicts of `search`: from the journal when it ended before, else by running it to its end."""
        self._next += 1
        if self._next <= len(self._ended):
            return Verdicts(**self._ended[self._next - 1])
        if self._under_way is not None:
            search.restore(self._under_way)
            self._under_way = None
        cost = Meter(self, search)

        def watch(running: Search) -> None:
            self._progress(stage, running)
            self.check()
            stopping = self._stop()
            waited = time.monotonic() - self._saved_at
            if stopping or (self.path is not None and waited > _EVERY * max(1.0, self._took / _LONG)):
                began = time.monotonic()
                snapshot = running.snapshot()
                cost.read()
                self._save(snapshot)
                self._took = time.monotonic() - began
            if stopping:
                self._interrupt()

        self._running = search
        try:
            verdicts = search.run(watch)
        finally:
            cost.read()
        self._running = None
        self._end(vars(verdicts))
        return verdicts

    def once(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` returns, tensors and plain values, "fell" among them: from the journal when it ended before.

        For what cannot be saved half done: a kill loses all of it, and a stop waits for its end.
        """
        self._next += 1
        if self._next <= len(self._ended):
            return self._ended[self._next - 1]
        self.poll()
        began = time.perf_counter()
        try:
            found = work()
        finally:
            self.seconds += time.perf_counter() - began
        self._end(found)
        return found

    def poll(self) -> None:
        """Between two searches: when asked to stop, save and raise Interrupted."""
        if self._stop():
            self._save(self._under_way)
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        raise Interrupted("stopped" if self.path is None else "stopped and saved: go on with --resume")

    def _end(self, found: dict[str, Any]) -> None:
        self._ended.append(found)
        if time.monotonic() - self._saved_at > 1:  # what was quick is as quick to run again
            self._save(None)

    def finish(self) -> None:
        """The record is written: what was kept for resuming, or half kept when killed, is no longer needed."""
        if self.path is not None:
            for kept in (self.path, *self.path.parent.glob(f"{glob.escape(self.path.name)}.part*")):
                kept.unlink(missing_ok=True)
            clear_leftovers(self.path.parent)

    def _save(self, under_way: dict[str, Any] | None) -> None:
        if self._file is None or not self.own:
            return
        stream = io.BytesIO()
        cost = (self.seconds, self.forwards, self.backwards)
        torch.save(
            {
                "asked": {**self.asked, **self._shard},
                "ended": self._ended,
                "under_way": under_way,
                "cost": cost,
                "halvings": self.halvings,
            },
            stream,
        )
        write_sealed(self._file, stream.getvalue())
        self._saved_at = time.monotonic()


def _load(path: Path) -> dict[str, Any]:
    content = read_sealed(path)
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        known = saved.keys() == {"asked", "ended", "under_way", "cost", "halvings"}
    except Exception:  # a whole file that another program or version wrote may make the reader fail in any way
        known = False
    if not known:
        raise UserError(f"{path} was not written by this version of advbench: drop --resume to start over")
    return saved


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists by the dotted names of what is in them; plain lists stay whole."""
    if isinstance(value, dict):
        pairs = [(f"{name}.{key}" if name else key, inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        pairs = [(f"{name}.{place}", inner) for place, inner in enumerate(value)]
    else:
        return {name: value}
    return {key: leaf for inner_name, inner in pairs for key, leaf in _leaves(inner, inner_name).items()}


class Meter:
    """Adds a search's time and passes to the journal, each once."""

    def __init__(self, journal: Journal, search: Search) -> None:
        self._journal, self._oracle = journal, search.oracle
        self._seen = (time.perf_counter(), self._oracle.forwards, self._oracle.backwards)

    def read(self) -> None:
        """Add what has come since the last reading."""
        now = (time.perf_counter(), self._oracle.forwards, self._oracle.backwards)
        self._journal.seconds += now[0] - self._seen[0]
        self._journal.forwards += now[1] - self._seen[1]
        self._journal.backwards += now[2] - self._seen[2]
        self._seen = now
