"""The progress of an evaluation on disk, from which a killed evaluation is resumed.

An evaluation is a sequence of searches, in which each search is determined by the verdicts before it. The journal keeps
the verdicts of the finished searches and a snapshot of the running one. Resuming does not run the finished ones again.
A journal belongs to one question, which is all that decides the answer. Resuming with another question is refused, and
the error names the differences.
"""

from __future__ import annotations

import glob
import io
import reprlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.engine.search import Search
from advbench.engine.verdicts import Verdicts, Work
from advbench.errors import Interrupted, UserError, reading
from advbench.evaluator.forecast import Forecast
from advbench.evaluator.identity import agree
from advbench.files import clear_leftovers, read_sealed, write_sealed

_SAVE_INTERVAL = 20.0  # seconds between two saves; a kill loses at most this and one step
Cost = tuple[float, int, int, Work]
_SLOW_SAVE = 1.0  # seconds; a slower save stretches the interval in proportion, so saving takes a twentieth of the time


class Journal:
    """The saved progress of one process; with `path` None nothing is saved.

    After every round of a search, `progress` is called with the `forecast`, then `check`, which may raise, then `stop`:
    if it returns true, the journal is saved and Interrupted is raised. All may be called at other times too.

    `seconds`, `forwards`, `backwards` and `work` are summed over all searches and all resumptions. `halvings` has an
    entry for each time that memory ran out: the number of slots that were left, and the number of hits by then.
    `merged` is set once the sums include other processes; after that nothing is saved, until `go_on`. `why` says why
    the evaluation went on to the attacks of its escalation, empty if it did not. `workers` holds, by number, the
    `state` at the end of the other processes that this one started. `redrawn` says in words why a
    random model's noise is another draw than that of an evaluation in one go, "" if it is not.

    `copy_error`: that of a search copy in bf16 (see `fp32_recheck`), 0 in fp32, None before it is measured.

    `logits` (M, K): the model's answers to the first clean images, where its code is from outside (see
    `identity.known_logits`). A file that was saved with others is not resumed.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Forecast], None] = lambda forecast: None,
    ) -> None:
        self.path, self._stop, self._progress = path, stop, progress
        self.forecast = Forecast()
        self._file = path
        self.seconds, self.forwards, self.backwards, self.work = 0.0, 0, 0, Work()
        self.question: dict[str, Any] = {}
        self._shard: dict[str, Any] = {}
        self._ended: list[dict[str, Any]] = []
        self._under_way: dict[str, Any] | None = None
        self._next = 0
        self._running: Search | None = None
        self._saved_at, self._save_duration = time.monotonic(), 0.0
        self.halvings: list[tuple[int, int]] = []
        self.check: Callable[[], None] = lambda: None
        self.merged = False
        self._own: tuple[Cost, list[tuple[int, int]]] | None = None  # its own sums, where they were merged
        self.why: list[str] = []
        self.workers: dict[int, dict[str, Any]] = {}
        self.redrawn = ""
        self.copy_error: float | None = None
        self.proved: Tensor | None = None  # (n,), as in `Fates`, of the proofs so far (see `certify`)
        self.logits: NDArray[np.float32] | None = None

    @property
    def slots(self) -> int | None:
        """The number of slots that are left if memory ran out, else None."""
        return self.halvings[-1][0] if self.halvings else None

    def saved(self) -> dict[str, Any] | None:
        """The question of the saved evaluation, None if there is none to be resumed. UserError for a damaged file."""
        if self.path is None or not self.path.exists():
            return None
        saved = _load(self.path)
        return saved["question"] if self._answers_as(saved) else None

    def file(self, number: int, of: int) -> Path | None:
        """The journal file of process `number` of `of`: `path` for the first, files beside it for the others."""
        if self.path is None or number == 0:
            return self.path
        return self.path.with_name(f"{self.path.name}.part{number}of{of}")

    def halve(self, slots: int) -> None:
        """Note that memory ran out and that `slots` are left, with the number of hits so far."""
        kept = [ended["fell"] for ended in self._ended]
        if self._running is not None:
            kept.append(self._running.verdicts.fell)
        self._running = None
        self.halvings.append((slots, sum(int(fell.sum()) for fell in kept)))

    @property
    def cost(self) -> Cost:
        """Seconds, forwards, backwards and work."""
        return self.seconds, self.forwards, self.backwards, self.work

    def merge(self, costs: Sequence[Cost], halvings: list[tuple[int, int]]) -> None:
        """Take over the costs and halvings of all processes, its own among them."""
        self._own = self.cost, self.halvings
        seconds, forwards, backwards, work = zip(*costs, strict=True)
        self.seconds, self.forwards, self.backwards = max(seconds), sum(forwards), sum(backwards)
        self.work = sum(work, Work())
        self.halvings, self.merged, self.check = halvings, True, lambda: None

    def go_on(self, why: list[str]) -> None:
        """Begin again with the searches that have ended, which are not run again, and then go on to further ones."""
        if self._own is not None:
            (self.seconds, self.forwards, self.backwards, self.work), self.halvings = self._own
        self.why, self.merged, self._next = why, False, 0
        self._save(None)

    def begin(self, question: dict[str, Any], *, resume: bool, number: int = 0, of: int = 1) -> bool:
        """Start on `question` as process `number` of `of`, or with `resume` continue from the saved file.

        `question` holds plain values. Returns whether it continues. With a warning it starts over where the model
        answers otherwise than when the file was saved. Raises UserError when the file is damaged or belongs to another
        question; the message names the differences.
        """
        self.question, self._file = question, self.file(number, of)
        self._shard = {"shard": {"rank": number, "of": of}} if of > 1 else {}
        self._ended, self._under_way, self.halvings, self.why, self.copy_error = [], None, [], [], None
        self.proved = None
        self.seconds, self.forwards, self.backwards, self.work = 0.0, 0, 0, Work()
        self.redrawn = f"shared by {of} processes" if of > 1 else ""
        if not resume or self._file is None or not self._file.exists():
            return False
        saved = _load(self._file)
        was, now = _leaves(saved["question"]), _leaves({**question, **self._shard})
        different = [
            f"{key} was {reprlib.repr(was.get(key))}, is {reprlib.repr(now.get(key))}"
            for key in sorted({*was, *now})
            if was.get(key) != now.get(key)
        ]
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise UserError(
                f"{self._file} belongs to another evaluation: {'; '.join(different[:3])}{more}; "
                "drop --resume to start over"
            )
        if not self._answers_as(saved):
            warnings.warn(f"the model no longer answers as when {self._file} was saved: starting over", stacklevel=2)
            return False
        self.redrawn = "resumed"
        self.restore(saved)
        self.forecast.earlier = self.seconds
        return True

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a `state` of this question."""
        self._ended, self._under_way = saved["ended"], saved["under_way"]
        (self.seconds, self.forwards, self.backwards), self.work = saved["cost"], Work(*saved["work"])
        self.halvings, self.why = [(slots, fallen) for slots, fallen in saved["halvings"]], saved["why"]
        self.copy_error, self.proved = saved["copy_error"], saved["proved"]

    def _answers_as(self, saved: dict[str, Any]) -> bool:
        then = saved["logits"]
        return agree(None if then is None else then.numpy(), self.logits)

    def run(self, stage: str, search: Search, *, recheck: bool = False) -> Verdicts:
        """The verdicts of `search`: from the journal if it finished before, else by running it to its end.

        `recheck`: it repeats others in fp32.
        """
        self._next += 1
        if self._next <= len(self._ended):
            with reading(f"{self._file}; drop --resume to start over"):
                return Verdicts(**self._ended[self._next - 1])
        if self._under_way is not None:
            with reading(f"{self._file}; drop --resume to start over"):
                search.restore(self._under_way)
            self._under_way = None
        else:  # else they were counted before the save
            self.forwards += search.spent[0]
            self.backwards += search.spent[1]
        cost = Meter(self, search, recheck=recheck)

        def watch(running: Search) -> None:
            self.tell()
            self.check()
            stopping = self._stop()
            waited = time.monotonic() - self._saved_at
            interval = _SAVE_INTERVAL * max(1.0, self._save_duration / _SLOW_SAVE)
            if stopping or (self.path is not None and waited > interval):
                began = time.monotonic()
                snapshot = running.snapshot()
                cost.read()
                self._save(snapshot)
                self._save_duration = time.monotonic() - began
            if stopping:
                self._interrupt()

        self._running = search
        self.forecast.search(f"{stage} in fp32" if recheck else stage, search)
        self.tell()
        try:
            verdicts = search.run(watch)
        finally:
            cost.read()
            self.forecast.end()
        self._running = None
        self._end(vars(verdicts))
        return verdicts

    def once(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of `work`: from the journal if it finished before, else by calling it.

        The result holds tensors and plain values, among them "fell", and the passes made, "forwards" and "backwards",
        where there are any. This is for work that cannot be saved half done: a kill loses all of it, and a stop waits
        for its end.
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
        self.forwards += found.get("forwards", 0)
        self.backwards += found.get("backwards", 0)
        self._end(found)
        return found

    def tell(self) -> None:
        """Tell the progress."""
        self._progress(self.forecast)

    def poll(self) -> None:
        """Between two searches: tell the progress; if `stop` returns true, save and raise Interrupted."""
        self.tell()
        if self._stop():
            self._save(self._under_way)
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        raise Interrupted("stopped" if self.path is None else "stopped and saved")

    def _end(self, found: dict[str, Any]) -> None:
        self._ended.append(found)
        if time.monotonic() - self._saved_at > 1:  # quick work is not worth a save
            self._save(None)

    def finish(self) -> None:
        """Remove all files that were kept for resuming: the record is written."""
        if self.path is not None:
            for kept in (self.path, *self.path.parent.glob(f"{glob.escape(self.path.name)}.part*")):
                kept.unlink(missing_ok=True)
            clear_leftovers(self.path.parent)

    def _save(self, under_way: dict[str, Any] | None) -> None:
        if self._file is None or self.merged:
            return
        stream = io.BytesIO()
        torch.save(self.state(under_way), stream)
        write_sealed(self._file, stream.getvalue())
        self._saved_at = time.monotonic()

    def state(self, under_way: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the file holds; `under_way` is the snapshot of a search, by default of the one that waits to go on."""
        return {
            "question": {**self.question, **self._shard},
            "ended": self._ended,
            "under_way": under_way or self._under_way,
            "cost": (self.seconds, self.forwards, self.backwards),
            "work": astuple(self.work),
            "halvings": self.halvings,
            "logits": None if self.logits is None else torch.from_numpy(self.logits),
            "why": self.why,
            "copy_error": self.copy_error,
            "proved": self.proved,
        }


def _load(path: Path) -> dict[str, Any]:
    content = read_sealed(path)
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        known = saved.keys() == {
            "question", "ended", "under_way", "cost", "work", "halvings", "logits", "why", "copy_error", "proved",
        }  # fmt: skip
    except Exception:  # a file of another program or version can make torch.load fail in any way
        known = False
    if not known:
        raise UserError(f"{path} was not written by this version of advbench: drop --resume to start over")
    return saved


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists by dotted name; a list without dicts is one leaf."""
    if isinstance(value, dict):
        pairs = [(f"{name}.{key}" if name else key, inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        pairs = [(f"{name}.{place}", inner) for place, inner in enumerate(value)]
    else:
        return {name: value}
    return {key: leaf for inner_name, inner in pairs for key, leaf in _leaves(inner, inner_name).items()}


class Meter:
    """Adds a search's time, passes and work to the journal, without counting any twice."""

    def __init__(self, journal: Journal, search: Search, *, recheck: bool) -> None:
        self._journal, self._search, self._oracle, self._recheck = journal, search, search.oracle, recheck
        self._seen = (time.perf_counter(), self._oracle.forwards, self._oracle.backwards)
        self._work = Work()

    def read(self) -> None:
        """Add the time and passes since the last reading."""
        now = (time.perf_counter(), self._oracle.forwards, self._oracle.backwards)
        self._journal.seconds += now[0] - self._seen[0]
        self._journal.forwards += now[1] - self._seen[1]
        self._journal.backwards += now[2] - self._seen[2]
        self._seen = now
        work = self._search.work - self._work
        self._journal.work += work.rechecking() if self._recheck else work
        self._work = replace(self._search.work)
