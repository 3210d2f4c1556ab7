"""How long an evaluation still takes: what each attack has planned, at the pace that was measured so far.

Work is counted in passes of single images, forward or backward. An image that stands meets every attack to its end, so
the estimate takes all images that stand now to stand to the end. It shrinks when they fall. It grows only where an
image falls at one eps after the other, or a hit is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from advbench.engine.attack import Attack
from advbench.engine.search import Search
from advbench.engine.whole_batch import WholeBatch
from advbench.evaluator.plan import Plan
from advbench.outlook import Outlook

PRIOR_SECONDS = 1.0  # of an attack's own time, as much as the pace of the other attacks counts
Told = tuple[float | None, int, int]
"""Of another process: the seconds left, None if unknown; how many images fell in the running search; of how many."""


@dataclass(eq=False)
class Part:
    """One attack of an evaluation, or what else takes passes.

    `item`: the passes of an item, to its end; `items`: of an image; `images`: how many are still to be attacked, after
    the running search. `passes`, `seconds`: those so far.
    """

    name: str
    item: float = 1.0
    items: int = 1
    images: float = 0.0
    passes: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, attack: Attack, classes: int) -> Part:
        """The part of an attack. The plans of an attack from outside are not known: its unit is an image."""
        passes = float(sum(attack.passes(classes)))
        if isinstance(attack, WholeBatch):
            return cls(attack.name, item=passes)
        items = attack.items(classes)
        return cls(attack.name, item=passes / items, items=items)

    @property
    def left(self) -> float:
        """The passes on `images`."""
        return self.item * self.images * self.items


@dataclass
class Forecast:
    """The forecast of one evaluation in one process, which says what runs: `stage`.

    `earlier`: seconds that it took before it was resumed. `others` returns what the other processes have told that
    share its images. `fell` of `images`: how many fell in the running search.
    """

    stage: str = "preparing"
    earlier: float = 0.0
    others: Callable[[], Sequence[Told]] = tuple
    fell: int = 0
    images: int = 0
    parts: list[Part] = field(default_factory=list)
    probes: Part = field(default_factory=lambda: Part("probes", item=2.0))  # a pass forward and mostly one back
    _part: Part = field(default_factory=lambda: Part(""))  # that runs, or ran last
    _left: Callable[[], float] = lambda: 0.0  # passes left in what runs
    _made: Callable[[], float] = lambda: 0.0  # passes made in what runs
    _since: float | None = None  # when what runs began
    _began: float = field(default_factory=lambda: time.monotonic())
    _place: str = ""
    _rounds: int = 0  # by which the first part bisects the grid
    _repeated: Sequence[range] = ()  # parts that attack an image one after another at each point of the grid
    _strikes: Sequence[int] = ()  # by part: on an image that stands

    def plan(self, run: Plan, classes: int, images: int, points: int) -> None:
        """The attacks of `run` are to follow one another on `images`, at `points` of the grid."""
        self.parts = [Part.of(attack, classes) for attack in run.every]
        self._strikes, first = run.strikes(points), len(run.attacks)
        self._rounds = self._strikes[0] if run.curve == "fast" else 0
        both = range(first), range(first + len(run.recheck), len(self.parts))
        self._repeated = both if run.curve == "exact" else ()
        for part, count in zip(self.parts, self._strikes, strict=True):
            part.images = images * count

    def strike(self, number: int, standing: int, points: int = 0) -> None:
        """Part `number` attacks now. `standing` images can still fall; the grid has `points` more points."""
        together = next((some for some in self._repeated if number in some), range(0))
        for place, part in enumerate(self.parts):
            count = (place > number) + points if place in together else self._strikes[place] * (place > number)
            part.images = standing * count
        if self._rounds and number == 0:
            self._rounds -= 1
            self.parts[0].images = standing * self._rounds
        self._part = self.parts[number]
        self._place = f"attack {number + 1} of {len(self.parts)}: " if len(self.parts) > 1 else ""

    def search(self, stage: str, search: Search) -> None:
        """A search begins."""
        oracle, before = search.oracle, search.oracle.forwards + search.oracle.backwards
        item = self._part.item

        def left() -> float:
            self.fell, self.images = int(search.verdicts.fell.sum()), len(search.verdicts.fell)
            return item * items_left(search)

        self.begin(f"{self._place}{stage}", left, lambda: oracle.forwards + oracle.backwards - before)

    def batch(self, stage: str, done: int, of: int) -> Callable[[float], None]:
        """A batch of an attack on whole batches begins, after `done` of `of` images.

        Returns what is to be told how many of its images are attacked by now.
        """
        at, item = [0.0], self._part.item
        self.begin(f"{self._place}{stage}", lambda: item * (of - done - at[0]), lambda: item * at[0])
        return lambda images: at.__setitem__(0, images)

    def probing(self, forwards: Callable[[], int]) -> None:
        """The probes begin; `forwards` are the passes they made."""
        most, item = self.probes.left, self.probes.item
        self._part, self.probes.images, self.others, self.fell, self.images = self.probes, 0.0, tuple, 0, 0
        self.begin("probes", lambda: max(most - item * forwards(), 0.0), lambda: item * forwards())

    def begin(self, stage: str, left: Callable[[], float], made: Callable[[], float]) -> None:
        """A stage begins: functions of the passes that are left in it, and that it made."""
        self.stage, self._left, self._made, self._since = stage, left, made, time.monotonic()

    def end(self) -> None:
        """What runs has ended."""
        if self._since is not None:
            self._part.passes += self._made()
            self._part.seconds += time.monotonic() - self._since
        self._since = None
        self._left = self._made = lambda: 0.0

    def attacked(self) -> None:
        """All attacks of this process have ended."""
        for part in self.parts:
            part.images = 0.0

    @property
    def spent(self) -> float:
        """Seconds since the evaluation began, without pauses."""
        return self.earlier + time.monotonic() - self._began

    def told(self) -> Told:
        """What this process tells of its attacks."""
        needed = [self._needed(part) for part in self._attacks()]
        return None if None in needed else sum(filter(None, needed)), self.fell, self.images

    def left(self) -> float | None:
        """The seconds that are left for all processes and the probes, None before the first pass of an attack."""
        needed = [one[0] for one in (self.told(), *self.others())] if self.parts else [None]
        probes = self._needed(self.probes)
        return None if None in needed or probes is None else max(filter(None, needed), default=0.0) + probes

    def _attacks(self) -> list[Part]:
        return self.parts if self._part in (*self.parts, self.probes) else [*self.parts, self._part]

    def _needed(self, part: Part) -> float | None:
        """The seconds that a part still takes: at its own pace, and as long as it made few passes, at that of all."""
        left = part.left + (self._left() if part is self._part else 0.0)
        if not left:
            return 0.0
        passes, seconds = self._measured([*self._attacks(), self.probes])
        if not passes:
            return None
        own_passes, own_seconds = self._measured([part])
        return left * (own_seconds + PRIOR_SECONDS) / (own_passes + PRIOR_SECONDS * passes / max(seconds, 1e-9))

    def _measured(self, parts: Sequence[Part]) -> tuple[float, float]:
        passes, seconds = sum(part.passes for part in parts), sum(part.seconds for part in parts)
        if self._since is not None and self._part in parts:
            return passes + self._made(), seconds + time.monotonic() - self._since
        return passes, seconds

    def fallen(self) -> str:
        """How many images fell in what runs, in all processes."""
        every = [(self.fell, self.images), *((fell, images) for _, fell, images in self.others())]
        fell, images = map(sum, zip(*every, strict=True))
        return f"{fell} of {images} fell" if images else ""


class Series:
    """Evaluations that follow one another, of expected `works` in any unit. The share never falls."""

    def __init__(self, works: Sequence[float] = (1.0,)) -> None:
        self._works, self._number = list(works), 0
        self._spent, self._share, self._forecast = 0.0, 0.0, Forecast()

    def next(self, *, skipped: bool = False) -> None:
        """The running evaluation has ended, or was `skipped` since it was done before."""
        if skipped:
            self._works[self._number] = 0.0
        else:
            self._spent += self._forecast.spent
        self._number += 1

    def outlook(self, forecast: Forecast) -> Outlook:
        """The outlook on all evaluations, of which the one of `forecast` runs."""
        self._forecast = forecast
        left, count = forecast.left(), len(self._works)
        if left is not None:
            spent, known = self._spent + forecast.spent, sum(self._works[: self._number + 1])
            if known:
                left += (spent + left) / known * sum(self._works[self._number + 1 :])
            self._share = max(self._share, min(spent / max(spent + left, 1e-9), 0.99))
        model = f"model {self._number + 1} of {count}, " if count > 1 else ""
        return Outlook(f"{model}{forecast.stage}", self._share, left, forecast.fallen())


def items_left(search: Search) -> float:
    """The items of a search that are left if all that stand now stand to the end; a begun one counts in part."""
    fell, n = search.verdicts.fell.numpy(), len(search.order)
    standing = np.ones_like(fell) if search.minimum_norm else ~fell
    rounds, at = divmod(search.next, n)
    waiting = sum(map(len, search.refused))
    if search.next < search.total:
        waiting += int(standing[search.order[at:]].sum()) + (search.total // n - rounds - 1) * int(standing.sum())
    answers = (search.attack.steps + 1) * len(search.attack.turn)
    shares = (1 - search.state.i.cpu()[torch.from_numpy(search.item >= 0)] / answers).clamp(min=0)
    return waiting + float(shares.sum())
