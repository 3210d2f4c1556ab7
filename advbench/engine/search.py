"""The search: runs one attack on many samples, in a fixed number of slots that are refilled as soon as an item ends.

An item is (sample, target, restart). It ends when its attack is done, or when the sample falls to it or to another
item. Items are queued target by target, samples of large clean margin first. So a sample's later targets start after
its earlier ones are decided, and short items come last, which leaves few slots idle at the end.

Shapes never change and no item depends on the other slots. So verdicts do not depend on the order of the samples,
sharding or interruption, as long as the number of slots is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from advbench import rng
from advbench.engine.attack import Answer, Asks, Attack, Problem, Samples, State
from advbench.engine.cuda_graph import Capture, graphed
from advbench.engine.losses import margin, wrong
from advbench.engine.oracle import Oracle
from advbench.engine.rejection import in_8_bit
from advbench.engine.slots import Hits, Slots, copied, cpu_copies
from advbench.engine.tensors import join, mapped, put, rows, surely_none, take
from advbench.threat import around

Attempt = tuple[float, int, Tensor]
"""The margin on the search copy, the item's place in the queue, and the point (C, H, W) on the CPU."""

# Shares of an image's largest logit: rounding that a search copy may have added to a margin, and the most of it.
ROUNDING, MAX_ROUNDING = 2.0**-19, 2.0**-5


@dataclass
class Verdicts:
    """The results of one attack on n samples, on the CPU.

    `fell` (n,) bool; `distance` (n,) float64: of the nearest verified adversarial example, inf if there is none;
    `points`: those adversarial examples by row, if asked for; `refused` (n,) float64: the size of the nearest hit that
    the model refused, inf if there is none. `best_margin` (n,): the largest margin on the search copy of a query inside
    the ball, -inf if not asked for; `attempts`: of the samples that stand, by row and if asked for, that query; neither
    in a search for the nearest adversarial example. `unverified` counts the refused hits, `nonfinite` hits with NaN or
    infinite logits, `outside` points returned by the attack that lie outside the ball.
    """

    fell: Tensor
    distance: Tensor
    best_margin: Tensor
    refused: Tensor
    points: dict[int, Tensor] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    unverified: int = 0
    nonfinite: int = 0
    outside: int = 0


class Search:
    """One attack on samples. `run` returns the verdicts; `snapshot` and `restore` resume a search that was stopped.

    `stride`: number of turns between two synchronisations with the host (1 on CPUs, where they are free). `capture`:
    record a turn once, then replay it; if that fails, `eager` says why. `before`: verdicts of an earlier search on the
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
        keep_points: bool = False,
        keep_attempts: bool = False,
        keep_margins: bool = False,
        capture: Capture | None = None,
        before: Verdicts | None = None,
    ) -> None:
        self.attack, self.samples, self.oracle = attack, samples, oracle
        self.norm, self.seed, self.stride, self.keep_points = norm, seed, stride, keep_points
        n, slots, device = len(samples.y), oracle.slots, samples.y.device
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
        by_margin = margin(samples.logits, samples.y).cpu().argsort(stable=True).tolist()
        self.queue = [
            (row, rank, restart)
            for restart in range(attack.restarts)
            for rank in range(self.targets.shape[1])
            for row in by_margin
        ]
        self.next = 0
        self.item = [-1] * slots  # the queue position of each slot's item; -1: idle
        self._busy = torch.zeros(slots, dtype=torch.bool, device=device)  # slots with an item
        self._idle = True  # whether slots may have become idle since the last fill
        problem = self._problem([0] * slots)
        self.slots = Slots(
            problem,
            mapped(torch.clone, attack.start(problem)),  # in-place writes need separate tensors
            torch.empty_like(problem.region.x),
            torch.zeros(slots, dtype=torch.bool, device=device),
            torch.zeros(slots, device=device),
            torch.zeros(slots, device=device),
            torch.zeros_like(problem.region.x) if self.keep_attempts else torch.zeros(slots, 1, device=device),
            torch.zeros(slots, device=device),
        )
        self.unchecked: list[Hits] = []
        self._waiting = 0  # number of items in `unchecked`
        self.refused: list[tuple[int, State, Tensor]] = []
        # Hits are verified once so many wait. A verified hit cancels its sample's other items, so if samples have
        # several items, it must not wait for a full batch.
        self.verify_at = slots if len(self.queue) == n else max(1, slots // 8)
        self.eager = ""
        self._capture = capture
        self._replay: Callable[[], None] | None = None

    @property
    def finished(self) -> int:
        """The number of items that ended or were cancelled, out of `len(queue)`."""
        return self.next - sum(item >= 0 for item in self.item) - self._waiting - len(self.refused)

    @property
    def state(self) -> State:
        """The states of the items in the slots."""
        return self.slots.state

    def run(self, watch: Callable[[Search], None] | None = None) -> Verdicts:
        """Run all items. `watch` is called after every round; it can stop the search by raising."""
        while True:
            self._fill()
            if any(item >= 0 for item in self.item):
                self._advance()
            elif self.unchecked:
                self._verify()
            else:
                return self.verdicts
            if self._waiting >= self.verify_at:
                self._verify()
            if watch is not None:
                watch(self)

    def snapshot(self) -> dict[str, Any]:
        """CPU copies of tensors and plain values, from which `restore` continues to the same verdicts."""
        v = self.verdicts
        return {
            "next": self.next,
            "item": list(self.item),
            "state": cpu_copies(self.state),
            "candidate": copied(self.slots.candidate),
            "best_size": copied(self.slots.best_size),
            "has_candidate": copied(self.slots.has_candidate),
            "margin_to_beat": copied(self.slots.margin_to_beat),
            "attempt": copied(self.slots.attempt),
            "attempt_margin": copied(self.slots.attempt_margin),
            "unchecked": [
                (copied(hits.items), copied(hits.points), cpu_copies(hits.states), copied(hits.margin_to_beat))
                for hits in self.unchecked
            ],
            "refused": [(item, cpu_copies(state), copied(to_beat)) for item, state, to_beat in self.refused],
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

        self.next, self.item = saved["next"], list(saved["item"])
        self._leave([False] * len(self.item))
        self.slots = Slots(
            self._problem([max(item, 0) for item in self.item]),
            state(saved["state"]),
            *(copied(saved[name], device) for name in ("candidate", "has_candidate", "best_size", "margin_to_beat")),
            *(copied(saved[name], device) for name in ("attempt", "attempt_margin")),
        )
        self.unchecked = [
            Hits(copied(items), copied(points, device), state(fields), copied(to_beat, device))
            for items, points, fields, to_beat in saved["unchecked"]
        ]
        self._waiting = sum(map(len, self.unchecked))
        self.refused = [(item, state(fields), copied(to_beat, device)) for item, fields, to_beat in saved["refused"]]
        self.verdicts = Verdicts(
            copied(saved["fell"]), copied(saved["distance"]), copied(saved["best_margin"]),
            copied(saved["refused_size"]), dict(saved["points"]), dict(saved["attempts"]), saved["unverified"],
            saved["nonfinite"],
        )  # fmt: skip

    def _problem(self, items: list[int]) -> Problem:
        device = self.samples.y.device
        row, rank, restart = (
            torch.tensor(column, device=device) for column in zip(*(self.queue[i] for i in items), strict=True)
        )
        target = self.targets[row, rank]
        index = self.samples.index[row]
        key = rng.keys(self.seed, self.attack.name, index, target, restart)
        region = around(self.norm, self.samples.x(row), self.samples.eps[row])
        reference = self.oracle.reference(self.samples, row, target)
        return Problem(region, self.samples.y[row], target, key, restart, reference, index)

    def _fill(self) -> None:
        """Give idle slots the refused items, then the next items of the queue whose samples still stand."""
        if not self._idle:
            return
        self._idle = False
        idle = [slot for slot, item in enumerate(self.item) if item < 0]
        again = [self.refused.pop() for _ in idle[: len(self.refused)]]
        if again:
            items, states, margins = zip(*again, strict=True)
            self._place(idle[: len(again)], list(items), self._problem(list(items)), join(states), torch.cat(margins))
        fresh: list[int] = []
        while len(again) + len(fresh) < len(idle) and self.next < len(self.queue):
            if self.minimum_norm or not self.verdicts.fell[self.queue[self.next][0]]:
                fresh.append(self.next)
            self.next += 1
        if fresh:
            problem = self._problem(fresh)
            to_beat = torch.full((len(fresh),), -torch.inf, device=self.slots.margin_to_beat.device)
            self._place(idle[len(again) :][: len(fresh)], fresh, problem, self.attack.start(problem), to_beat)

    def _place(self, slots: list[int], items: list[int], problem: Problem, state: State, to_beat: Tensor) -> None:
        at = torch.tensor(slots, device=self.slots.has_candidate.device)
        put(self.slots.problem, at, problem)
        put(self.slots.state, at, state)
        self.slots.has_candidate[at] = False
        self.slots.best_size[at] = torch.inf
        self.slots.margin_to_beat[at] = to_beat
        self.slots.attempt_margin[at] = -torch.inf
        self._busy[at] = True
        for slot, item in zip(slots, items, strict=True):
            self.item[slot] = item

    def _advance(self) -> None:
        """Run `stride` turns in all slots, then end the items that are done or have a hit."""
        if self._capture is not None:
            self._record(self._capture)
        for _ in range(self.stride):
            if self._replay is None:
                self.slots = self._step(self.slots)
            else:
                self._replay()
        done = self.attack.done(self.state)
        ended = self._busy & (done if self.minimum_norm else done | self.slots.has_candidate)
        if surely_none(ended):
            return
        over, hit = torch.stack([ended, self.slots.has_candidate]).tolist()
        hits = [slot for slot in range(len(over)) if over[slot] and hit[slot]]
        if hits:
            at = torch.tensor(hits, device=ended.device)
            items = torch.tensor([self.item[slot] for slot in hits])
            self.unchecked.append(
                Hits(items, self.slots.candidate[at], take(self.state, at), self.slots.margin_to_beat[at])
            )
            self._waiting += len(hits)
        if self.keep_attempts:
            self._collect([slot for slot in range(len(over)) if over[slot]])
        if self.keep_margins:
            ours = torch.tensor([slot for slot in range(len(over)) if over[slot]])
            of = torch.tensor([self.queue[self.item[slot]][0] for slot in ours.tolist()])
            self.verdicts.best_margin.scatter_reduce_(0, of, self.slots.attempt_margin.cpu()[ours], "amax")
        self._leave(over)

    def _collect(self, slots: list[int]) -> None:
        """Keep the attempts of the items that end in `slots` where they are the strongest of their samples."""
        margins, kept = self.slots.attempt_margin.tolist(), self.verdicts.attempts
        for slot in slots:
            item = self.item[slot]
            row, rank = self.queue[item][0], (margins[slot], -item)  # of equal ones, that of the first item
            before = kept.get(row)
            if self.verdicts.fell[row] or margins[slot] == -torch.inf:
                continue
            if before is None or rank > (before[0], -before[1]):
                kept[row] = margins[slot], item, copied(self.slots.attempt[slot])

    def _leave(self, slots: list[bool]) -> None:
        """Make `slots` idle: those whose entry is true."""
        self.item = [-1 if left else item for left, item in zip(slots, self.item, strict=True)]
        self._busy = torch.tensor([item >= 0 for item in self.item], device=self._busy.device)
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
        """`slots` with those of the points `query` (slots, C, H, W) as candidates that the search copy gets wrong."""
        p, going = slots.problem, ~self.attack.done(slots.state)
        if self.keep_margins:
            slots = self._attempted(slots, query, answer, going)
        hit, best, to_beat = answer.wrong & going, slots.best_size, slots.margin_to_beat
        if not self.minimum_norm:
            hit = hit & ~slots.has_candidate
        if surely_none(hit):  # the common case; what follows is slow
            return slots
        if self.minimum_norm:
            size = p.region.size(query - p.region.x)
            hit = hit & (size < best)
            best = torch.where(hit, size, best)
        else:
            hit = hit & p.region.contains(query)
            if not self.oracle.random:  # one pass of a random model says little about its mean
                reached = margin(answer.logits, p.y)
                hit = hit & ~(reached <= to_beat)  # a NaN margin counts as a hit
                to_beat = torch.where(hit, reached, to_beat)
        candidate = rows(hit, query, slots.candidate)
        return replace(
            slots, candidate=candidate, has_candidate=slots.has_candidate | hit, best_size=best, margin_to_beat=to_beat
        )

    def _attempted(self, slots: Slots, query: Tensor, answer: Answer, going: Tensor) -> Slots:
        """`slots` with those queries as attempts that are inside the ball and have a larger margin, if `going` (S,)."""
        reached = margin(answer.logits, slots.problem.y)
        better = going & (reached > slots.attempt_margin)
        if surely_none(better):
            return slots
        better = better & slots.problem.region.contains(query)
        attempt = rows(better, query, slots.attempt) if self.keep_attempts else slots.attempt
        return replace(slots, attempt=attempt, attempt_margin=torch.where(better, reached, slots.attempt_margin))

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
        """Let the model judge up to `slots` waiting hits; free the slots of samples that fell."""
        waiting = join(self.unchecked)
        first = torch.arange(min(len(waiting), self.oracle.slots))
        batch = take(waiting, first)
        rest = torch.arange(len(first), len(waiting))
        self.unchecked = [take(waiting, rest)] if len(rest) else []
        self._waiting = len(rest)
        items = batch.items.tolist()
        p = self._problem(items)
        z = p.region.project(batch.points)
        logits = self.oracle.logits(z, p.y)
        good = (wrong(logits, p.y) & p.region.contains(z)).tolist()
        largest, reached = logits.abs().amax(1), margin(logits, p.y)
        if self.minimum_norm:  # from the start: the item's steps are used up
            states = self.attack.start(p)
            to_beat = torch.maximum(4 * batch.margin_to_beat, torch.maximum(-2 * reached, ROUNDING * largest))
            most = (1 if self.oracle.random else MAX_ROUNDING) * largest
            again = ((to_beat > batch.margin_to_beat.clamp_min(0)) & (to_beat <= most)).tolist()
        else:
            states, to_beat = batch.states, batch.margin_to_beat - reached
            again = (~self.attack.done(states)).tolist()
        self.verdicts.nonfinite += int((~logits.isfinite()).any(1).sum())
        size = p.region.size(z.double() - p.region.x.double()).tolist()
        for place, item in enumerate(items):
            row = self.queue[item][0]
            if good[place]:
                self.verdicts.fell[row] = True
                self.verdicts.attempts.pop(row, None)
                if size[place] < self.verdicts.distance[row]:
                    self.verdicts.distance[row] = size[place]
                    if self.keep_points:
                        self.verdicts.points[row] = z[place].cpu()
            else:
                self.verdicts.unverified += 1
                self.verdicts.refused[row] = min(self.verdicts.refused[row].item(), size[place])
                if again[place]:
                    one = torch.tensor([place])
                    self.refused.append((item, take(states, one), to_beat[one]))
                    self._idle = True  # idle slots have work again
        if not self.minimum_norm:
            self._leave([item >= 0 and bool(self.verdicts.fell[self.queue[item][0]]) for item in self.item])
