"""The search: runs one attack on many samples, in slots that are refilled as soon as an item ends.

An item is (sample, target, restart). It ends when its attack is done, or when the sample falls to it or to another
item. Items are queued target by target, samples of large clean margin first. So a sample's later targets start after
its earlier ones are decided, and short items come last, which leaves few slots idle at the end.

No item depends on the other slots. So verdicts do not depend on the order of the samples, sharding or interruption, as
long as the number of slots is the same. The search becomes narrower once the queue is empty. On CUDA kernels of another
width may round otherwise, and then this holds up to rounding; an `exact` search uses only widths that do not. Hits are
always verified in passes of the whole number of slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench import rng
from advbench.engine.attack import Answer, Asks, Attack, Problem, Samples, State
from advbench.engine.cuda_graph import Capture, graphed
from advbench.engine.losses import margin, wrong
from advbench.engine.oracle import Oracle
from advbench.engine.rejection import in_8_bit
from advbench.engine.slots import Hits, Refused, Slots, copied, cpu_copies, cpu_fields
from advbench.engine.tensors import join, mapped, put, rows, surely_none, take, tensors
from advbench.engine.verdicts import Verdicts, Work
from advbench.threat import around

# Shares of an image's largest logit: rounding that a search copy may have added to a margin, and the most of it.
ROUNDING, MAX_ROUNDING = 2.0**-19, 2.0**-5
FEW = 16  # slots
NARROW_TO = 0.75  # of the width: a search becomes narrower when so few slots suffice; graphs are then recorded anew
NARROW_EXACTLY_TO = 0.9  # the same where a new width is tried first
TRIAL = 8  # turns that must be saved by a trial, which costs up to two
LOOK_AHEAD = 4096  # places of the queue that are examined at once

Places = NDArray[np.int64]
Margins = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
H = TypeVar("H", Hits, Refused)


def exact_most(attack: Attack, slots: int) -> int:
    """The largest width of an exact search with `attack`."""
    return min(slots, FEW) if attack.few_go_on else slots


class Results(NamedTuple):
    """By slot (S,): whether its item ends, whether it has a hit, and `Slots.attempt_margin`."""

    over: Mask
    hit: Mask
    margins: Margins


class Search:
    """One attack on samples. `run` returns the verdicts; `snapshot` and `restore` resume a search that was stopped.

    `stride`: number of turns between two synchronisations with the host (1 on CPUs, where they are free). `width_step`:
    the width, which is the number of slots in use, follows the items in such steps; without it, it is the oracle's.
    `exact`: it changes only where a turn, tried on the slots as they are, gives the same bits; and where few of the
    attack's items go on for long, it is at most FEW, so that few slots run idle beside them. `capture`: record a turn
    once for each width, then replay it; if that fails, `eager` says why. `before`: verdicts of an earlier search on the
    same samples; samples that fell there are skipped. `spent`: the forward and backward passes for the choice of target
    classes, before the run.
    """

    def __init__(
        self,
        attack: Attack,
        samples: Samples,
        oracle: Oracle,
        *,
        norm: str,
        seed: int,
        stride: int = 1,
        width_step: int | None = None,
        exact: bool = False,
        keep_points: bool = False,
        keep_attempts: bool = False,
        keep_margins: bool = False,
        capture: Capture | None = None,
        before: Verdicts | None = None,
    ) -> None:
        self.attack, self.samples, self.oracle = attack, samples, oracle
        self.norm, self.seed, self.stride, self.keep_points = norm, seed, stride, keep_points
        n, device = len(samples.y), samples.y.device
        self.exact, self._differing = exact, set[int]()  # widths at which a turn was seen to differ
        self.most = exact_most(attack, oracle.slots) if exact else oracle.slots
        self.width_step = width_step or self.most
        self.minimum_norm = bool(samples.eps.isinf().any())
        self.keep_attempts = keep_attempts and not self.minimum_norm
        self.keep_margins = (keep_attempts or keep_margins) and not self.minimum_norm
        self.verdicts = before or Verdicts(
            torch.zeros(n, dtype=torch.bool),
            torch.full((n,), torch.inf, dtype=torch.float64),
            torch.full((n,), -torch.inf),
            torch.full((n,), torch.inf, dtype=torch.float64),
        )
        before_targets = oracle.forwards, oracle.backwards
        self.targets = attack.target_classes_of(samples, oracle, norm)
        self.spent = oracle.forwards - before_targets[0], oracle.backwards - before_targets[1]
        self.work = Work()
        self.order: Places = margin(samples.logits, samples.y).cpu().argsort(stable=True).numpy()
        self.total = n * self.targets.shape[1] * attack.restarts  # number of items in the queue
        self.next = 0  # place in the queue
        standing = n if self.minimum_norm else int((~self.verdicts.fell).sum())
        width = self.most if self.exact else self._width_of(standing * self.total // n)
        self.item: Places = np.full(width, -1)  # the place in the queue of each slot's item; -1: idle
        self._busy = torch.zeros(width, dtype=torch.bool, device=device)  # slots with an item
        self._idle = True  # whether slots may have become idle since the last fill
        problem = self._problem(np.zeros(width, dtype=np.int64))
        self.slots = Slots(
            problem,
            mapped(torch.clone, attack.start(problem)),  # in-place writes need separate tensors
            torch.zeros_like(problem.region.x),  # not left empty: a NaN in it would differ from itself in a trial
            torch.zeros(width, dtype=torch.bool, device=device),
            torch.zeros(width, device=device),
            torch.zeros(width, device=device),
            torch.zeros_like(problem.region.x) if self.keep_attempts else torch.zeros(width, 1, device=device),
            torch.zeros(width, device=device),
        )
        self.unchecked: list[Hits] = []  # to be verified
        self.refused: list[Refused] = []  # which continue
        # Hits are verified once so many wait. A verified hit cancels its sample's other items, so if samples have
        # several items, it must not wait for a full batch.
        self.verify_at = oracle.slots if self.total == n else max(1, oracle.slots // 8)
        self.eager = ""
        self._given_capture = self._capture = capture
        self._replay: Callable[[], None] | None = None

    @property
    def finished(self) -> int:
        """The number of items that ended or were cancelled, out of `total`."""
        return self.next - int((self.item >= 0).sum()) - _count(self.unchecked) - _count(self.refused)

    @property
    def state(self) -> State:
        """The states of the items in the slots."""
        return self.slots.state

    @property
    def width(self) -> int:
        """The number of slots in use, at most the oracle's."""
        return len(self.item)

    def rows_of(self, items: Places) -> Places:
        """The samples' rows of items, which are places in the queue."""
        return self.order[items % len(self.order)]

    def run(self, watch: Callable[[Search], None] | None = None) -> Verdicts:
        """Run all items. `watch` is called after every round; it can stop the search by raising."""
        while True:
            began = time.perf_counter()
            self._fill()
            self.work.host += time.perf_counter() - began
            if (self.item >= 0).any():
                self._advance()
            elif self.unchecked:
                self._verify()
            else:
                return self.verdicts
            if _count(self.unchecked) >= self.verify_at:
                self._verify()
            if watch is not None:
                watch(self)

    def snapshot(self) -> dict[str, Any]:
        """CPU copies of tensors and plain values, from which `restore` continues to the same verdicts."""
        v = self.verdicts
        return {
            "next": self.next,
            "item": torch.from_numpy(self.item.copy()),
            "state": cpu_copies(self.state),
            "candidate": copied(self.slots.candidate),
            "best_size": copied(self.slots.best_size),
            "has_candidate": copied(self.slots.has_candidate),
            "margin_to_beat": copied(self.slots.margin_to_beat),
            "attempt": copied(self.slots.attempt),
            "attempt_margin": copied(self.slots.attempt_margin),
            "unchecked": [cpu_fields(one) for one in self.unchecked],
            "refused": [cpu_fields(one) for one in self.refused],
            "fell": copied(v.fell),
            "distance": copied(v.distance),
            "points": dict(v.points),
            "attempts": dict(v.attempts),
            "unverified": v.unverified,
            "nonfinite": v.nonfinite,
            "best_margin": copied(v.best_margin),
            "refused_size": copied(v.refused),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue the search whose `snapshot` is `saved` (same attack, samples, model and number of slots)."""
        kind, device = type(self.state), self.slots.has_candidate.device

        def state(fields: dict[str, Tensor]) -> State:
            return kind(**{name: copied(value, device) for name, value in fields.items()})

        def waiting(fields: dict[str, Any]) -> dict[str, Any]:
            on_device = {name: copied(fields[name], device) for name in fields.keys() - {"items", "states"}}
            return {"items": copied(fields["items"]), "states": state(fields["states"]), **on_device}

        self.next, self.item = saved["next"], saved["item"].numpy().copy()
        self._leave(self.item < 0)
        self.slots = Slots(
            self._problem(self.item.clip(0)),
            state(saved["state"]),
            *(copied(saved[name], device) for name in ("candidate", "has_candidate", "best_size", "margin_to_beat")),
            *(copied(saved[name], device) for name in ("attempt", "attempt_margin")),
        )
        self.unchecked = [Hits(**waiting(fields)) for fields in saved["unchecked"]]
        self.refused = [Refused(**waiting(fields)) for fields in saved["refused"]]
        self.verdicts = Verdicts(
            copied(saved["fell"]), copied(saved["distance"]), copied(saved["best_margin"]),
            copied(saved["refused_size"]), dict(saved["points"]), dict(saved["attempts"]), saved["unverified"],
            saved["nonfinite"],
        )  # fmt: skip

    def _width_of(self, items: int) -> int:
        """The width for so many items."""
        return min(self.most, max(1, -(-items // self.width_step)) * self.width_step)

    def _problem(self, items: Places) -> Problem:
        n, ranks = self.targets.shape
        of_items = np.stack([self.rows_of(items), items // n % ranks, items // (n * ranks)])
        row, rank, restart = torch.from_numpy(of_items).to(self.samples.y.device).unbind()
        target = self.targets[row, rank]
        index = self.samples.index[row]
        key = rng.keys(self.seed, self.attack.name, index, target, restart)
        region = around(self.norm, self.samples.x(row), self.samples.eps[row])
        reference = self.oracle.reference(self.samples, row, target)
        return Problem(region, self.samples.y[row], target, key, restart, reference, index)

    def _fill(self) -> None:
        """Give idle slots the refused items, then the next items of the queue whose samples still stand.

        Once the queue is empty, leave out slots that have nothing to do.
        """
        if not self._idle:
            return
        self._idle = False
        idle = (self.item < 0).nonzero()[0]
        if self.refused and len(idle):
            again, self.refused = _first(self.refused, len(idle))
            items = again.items.numpy()
            self._place(idle[: len(again)], items, self._problem(items), again.states, again.margin_to_beat)
            idle = idle[len(again) :]
        fresh = self._from_queue(len(idle))
        if len(fresh):
            problem = self._problem(fresh)
            to_beat = torch.full((len(fresh),), -torch.inf, device=self._busy.device)
            self._place(idle[: len(fresh)], fresh, problem, self.attack.start(problem), to_beat)
        if self.next >= self.total:
            self._narrow()

    def _from_queue(self, most: int) -> Places:
        """The next items of the queue whose samples still stand, at most so many."""
        found, fell = np.empty(0, dtype=np.int64), self.verdicts.fell.numpy()
        while len(found) < most and self.next < self.total:
            places = np.arange(self.next, min(self.next + LOOK_AHEAD, self.total))
            if not self.minimum_norm:
                places = places[~fell[self.rows_of(places)]]
            places = places[: most - len(found)]
            enough = len(found) + len(places) == most
            self.next = int(places[-1]) + 1 if enough else min(self.next + LOOK_AHEAD, self.total)
            found = np.concatenate([found, places])
        return found

    def _narrow(self) -> None:
        """Move the items to fewer slots if these are so few that it pays."""
        busy = (self.item >= 0).nonzero()[0]
        width, narrow_to = self._width_of(len(busy)), NARROW_TO
        if self.exact:
            narrow_to = min(NARROW_EXACTLY_TO, 1 - TRIAL / self.attack.steps)
        if not len(busy) or width > narrow_to * self.width or width in self._differing:
            return
        kept = np.concatenate([busy, (self.item < 0).nonzero()[0]])[:width]
        at = torch.from_numpy(kept).to(self._busy.device)
        if self.exact and not self._alike(at):
            self._differing.add(width)
            return
        self.slots, self.item = take(self.slots, at), self.item[kept]
        self._leave(self.item < 0)
        self._capture, self._replay = self._given_capture, None

    def _alike(self, at: Tensor) -> bool:
        """Whether a turn in the slots `at` alone gives the bits that it gives in all; no pass of it counts."""
        if self.oracle.random:
            return False
        before = self.oracle.forwards, self.oracle.backwards
        try:
            with rng.kept():
                among, alone = take(self._step(self.slots), at), self._step(take(self.slots, at))
            return all(map(torch.equal, tensors(among), tensors(alone)))
        except Exception:  # raised by the model's own code, such as for fixed batches, or for want of memory
            return False
        finally:
            self.oracle.forwards, self.oracle.backwards = before

    def _place(self, slots: Places, items: Places, problem: Problem, state: State, to_beat: Tensor) -> None:
        at = torch.from_numpy(slots).to(self._busy.device)
        put(self.slots.problem, at, problem)
        put(self.slots.state, at, state)
        self.slots.has_candidate[at] = False
        self.slots.best_size[at] = torch.inf
        self.slots.margin_to_beat[at] = to_beat
        self.slots.attempt_margin[at] = -torch.inf
        self._busy[at] = True
        self.item[slots] = items

    def _advance(self) -> None:
        """Run `stride` turns in all slots, then end the items that are done or have a hit."""
        began = time.perf_counter()
        if self._capture is not None:
            self._record(self._capture)
        for _ in range(self.stride):
            if self._replay is None:
                self.slots = self._step(self.slots)
            else:
                self._replay()
        done = self.attack.done(self.state)
        ended = self._busy & (done if self.minimum_norm else done | self.slots.has_candidate)
        results = None if surely_none(ended) else self._read(ended)
        read = time.perf_counter()
        self.work.attacks += read - began
        self.work.slot_steps += self.stride * self.width
        self.work.useful += self.stride * int((self.item >= 0).sum())
        if results is not None:
            self.work.useful -= (self.stride - 1) / 2 * int(results.over.sum())
            if results.over.any():
                self._end(results)
            self.work.host += time.perf_counter() - read

    def _read(self, ended: Tensor) -> Results:
        """The results of the slots. This is the only look of the host at the device in a round without hits."""
        columns = ended.float(), self.slots.has_candidate.float(), self.slots.attempt_margin
        over, hit, margins = torch.stack(columns).cpu().numpy()
        return Results(over > 0, hit > 0, margins)

    def _end(self, results: Results) -> None:
        """End the items of the slots that are over."""
        over, hit, margins = results
        hits = (over & hit).nonzero()[0]
        if len(hits):
            at = torch.from_numpy(hits).to(self._busy.device)
            self.unchecked.append(
                Hits(
                    torch.from_numpy(self.item[hits]),
                    take(self.state, at),
                    self.slots.margin_to_beat[at],
                    self.slots.candidate[at],
                )
            )
        if self.keep_attempts:
            self._collect(over.nonzero()[0], margins)
        if self.keep_margins:
            np.maximum.at(self.verdicts.best_margin.numpy(), self.rows_of(self.item[over]), margins[over])
        self._leave(over)

    def _collect(self, slots: Places, margins: Margins) -> None:
        """Keep the attempts of the items that end in `slots` where they are the strongest of their samples."""
        kept, found = self.verdicts.attempts, dict[int, tuple[float, int, int]]()
        for slot in slots[margins[slots] > -np.inf].tolist():
            item, reached = int(self.item[slot]), float(margins[slot])
            row = int(self.order[item % len(self.order)])
            before = found.get(row) or kept.get(row)
            if self.verdicts.fell[row]:
                continue
            if before is None or (reached, -item) > (before[0], -before[1]):  # of equal ones, that of the first item
                found[row] = reached, item, slot
        points = copied(self.slots.attempt[[slot for _, _, slot in found.values()]])
        kept.update({row: (*found[row][:2], point) for row, point in zip(found, points, strict=True)})

    def _leave(self, slots: Mask) -> None:
        """Make `slots` idle: those whose entry is true."""
        self.item[slots] = -1
        self._busy = torch.from_numpy(self.item >= 0).to(self._busy.device)
        self._idle = True

    def _step(self, slots: Slots) -> Slots:
        """One turn in all slots: the oracle's answers and the attack's steps."""
        for asks in self.attack.turn:
            slots = self._ask(slots, asks)
        return slots

    def _ask(self, slots: Slots, asks: Asks) -> Slots:
        attack, query = self.attack, slots.state.query
        p = replace(slots.problem, i=slots.state.i)
        handicap = None
        if self.minimum_norm and not surely_none(slots.margin_to_beat > -torch.inf):
            handicap = slots.margin_to_beat.clamp_min(0)  # where the copy only seemed to err, the attack must go on
        answer = self.oracle.answer(attack, p, query, asks, handicap)
        slots = self._with_candidates(slots, query, answer)
        if self.oracle.rejects:
            rounded = in_8_bit(p.region, query)
            slots = self._with_candidates(slots, rounded, self.oracle.answer(attack, p, rounded, "logits", handicap))
        return replace(slots, state=attack.step(p, slots.state, answer))

    def _with_candidates(self, slots: Slots, query: Tensor, answer: Answer) -> Slots:
        """`slots` with those of the points `query` (slots, C, H, W) as candidates that the search copy gets wrong, and,
        if margins are kept, with those as attempts that have a larger margin."""
        p, going = slots.problem, ~self.attack.done(slots.state)
        if self.minimum_norm:
            return self._with_nearer(slots, query, answer.wrong & going)
        hit = answer.wrong & going & ~slots.has_candidate
        if not self.keep_margins and surely_none(hit):  # the common case; what follows is slow
            return slots
        reached = margin(answer.logits, p.y)
        better = going & (reached > slots.attempt_margin) if self.keep_margins else hit
        if surely_none(hit) and surely_none(better):
            return slots
        inside = p.region.contains(query)
        hit, to_beat = hit & inside, slots.margin_to_beat
        if not self.oracle.random:  # one pass of a random model says little about its mean
            # A hit, and not of too small a margin: ">" is "and not" in one kernel. NaN is none, nor is -inf, which a
            # fresh item has to beat: such margins are of logits that are not finite, which are wrong answers.
            hit = hit > (reached.clamp_min(torch.finfo(reached.dtype).min) <= to_beat)
            to_beat = torch.where(hit, reached, to_beat)
        candidate = rows(hit, query, slots.candidate)
        found = replace(slots, candidate=candidate, has_candidate=slots.has_candidate | hit, margin_to_beat=to_beat)
        if not self.keep_margins:
            return found
        better = better & inside
        attempt = rows(better, query, slots.attempt) if self.keep_attempts else slots.attempt
        return replace(found, attempt=attempt, attempt_margin=torch.where(better, reached, slots.attempt_margin))

    def _with_nearer(self, slots: Slots, query: Tensor, hit: Tensor) -> Slots:
        """`slots` with those `query` as candidates that are a `hit` (slots,) of smaller norm."""
        if surely_none(hit):
            return slots
        region, best = slots.problem.region, slots.best_size
        size = region.size(query - region.x)
        hit = hit & (size < best)
        return replace(
            slots,
            candidate=rows(hit, query, slots.candidate),
            has_candidate=slots.has_candidate | hit,
            best_size=torch.where(hit, size, best),
        )

    def _record(self, capture: Capture) -> None:
        """Record a turn and replay it from now on, or note in `eager` why not."""
        self._capture = None
        oracle = self.oracle
        before = oracle.forwards, oracle.backwards
        recorded = graphed(self._step, self.slots, capture)
        self.slots, self.eager = recorded.live, recorded.why_not
        replay = recorded.replay
        if replay is None:
            return
        # The oracle counts passes as Python runs, so a replay has to add them.
        passes = [(now - then) // recorded.runs for now, then in
                  zip((oracle.forwards, oracle.backwards), before, strict=True)]  # fmt: skip

        def again() -> None:
            replay()
            oracle.forwards += passes[0]
            oracle.backwards += passes[1]

        self._replay = again

    def _verify(self) -> None:
        """Let the model judge up to `oracle.slots` waiting hits; free the slots of samples that fell."""
        began = time.perf_counter()
        batch, self.unchecked = _first(self.unchecked, self.oracle.slots)
        items = batch.items.numpy()
        p = self._problem(items)
        z = p.region.project(batch.points)
        logits = self.oracle.logits(z, p.y)
        largest, reached = logits.abs().amax(1), margin(logits, p.y)
        if self.minimum_norm:  # from the start: the item's steps are used up
            states = self.attack.start(p)
            to_beat = torch.maximum(4 * batch.margin_to_beat, torch.maximum(-2 * reached, ROUNDING * largest))
            most = (1 if self.oracle.random else MAX_ROUNDING) * largest
            again = (to_beat > batch.margin_to_beat.clamp_min(0)) & (to_beat <= most)
        else:
            states, to_beat = batch.states, batch.margin_to_beat - reached
            again = ~self.attack.done(states)
        judged = [
            wrong(logits, p.y) & p.region.contains(z),
            again,
            (~logits.isfinite()).any(1),
            p.region.size(z.double() - p.region.x.double()),
        ]
        good, again, nonfinite, size = torch.stack([one.double() for one in judged]).cpu().numpy()
        self.work.verification += time.perf_counter() - began
        began = time.perf_counter()
        self.verdicts.nonfinite += int(nonfinite.sum())
        self._count_hits(good > 0, self.rows_of(items), size, z)
        kept = ((good == 0) & (again > 0)).nonzero()[0]
        if len(kept):
            at = torch.from_numpy(kept).to(self._busy.device)
            self.refused.append(Refused(batch.items[kept], take(states, at), to_beat[at]))
            self._idle = True  # idle slots have work again
        if not self.minimum_norm:
            self._leave((self.item >= 0) & self.verdicts.fell.numpy()[self.rows_of(self.item)])
        self.work.host += time.perf_counter() - began

    def _count_hits(self, good: Mask, rows: Places, size: Margins, z: Tensor) -> None:
        """Enter hits z (m, C, H, W) of the samples `rows` (m,) and of norm `size` (m,): verified ones and refused."""
        v = self.verdicts
        v.fell.numpy()[rows[good]] = True
        for row in v.attempts.keys() & set(rows[good].tolist()):
            del v.attempts[row]
        distance, before = v.distance.numpy(), v.distance.numpy()[rows]
        np.minimum.at(distance, rows[good], size[good])
        if self.keep_points:
            nearest = (good & (size < before) & (size == distance[rows])).nonzero()[0][::-1]  # of equal ones the first
            v.points.update(zip(rows[nearest].tolist(), copied(z[nearest.copy()]), strict=True))
        v.unverified += int((~good).sum())
        np.minimum.at(v.refused.numpy(), rows[~good], size[~good])


def _count(some: Sequence[Refused]) -> int:
    return sum(map(len, some))


def _first(some: list[H], most: int) -> tuple[H, list[H]]:
    """At most so many items, and what is left."""
    every = join(some)
    rest = take(every, slice(most, None))
    return take(every, slice(most)), [rest] if len(rest) else []
