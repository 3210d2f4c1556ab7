"""The evaluation driver: a fixed number of slots, each refilled as soon as its item ends.

An item is (sample, target, restart). It ends when its attack is done, or when it or a sibling felled the
sample. Items are queued target by target, samples of large clean margin first: a sample's later targets
start when the earlier ones are decided, and the short items come last, so that few slots idle at the
end. Shapes never change. What an item meets does not depend on its neighbours, so verdicts are those of
any order, sharding or interruption at the same slot count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advbench import rng
from advbench.attacks.engine import Attack, Problem, State, put, rows, take
from advbench.attacks.losses import margin, wrong
from advbench.attacks.oracle import Oracle
from advbench.threat import around


@dataclass
class Samples:
    """What is attacked: `x(rows)` gives float32 images in [0, 1] on the device for int64 row numbers.

    labels y (n,), place in the dataset `index` (n,), `eps` (n,) float64 (infinite: look for the nearest
    adversarial point instead), clean `logits` (n, K).
    """

    x: Callable[[Tensor], Tensor]
    y: Tensor
    index: Tensor
    eps: Tensor
    logits: Tensor


@dataclass
class Verdicts:
    """`fell` (n,) bool; `distance` (n,) float64 of the nearest verified adversarial point, inf where there is
    none; `points`, by row, are those points where they were asked for; `unverified` counts refused hits, and
    `nonfinite` those that are wrong by NaN or infinite logits."""

    fell: Tensor
    distance: Tensor
    points: dict[int, Tensor] = field(default_factory=dict)
    unverified: int = 0
    nonfinite: int = 0


class Search:
    """One attack on samples. `run` ends with the verdicts; `snapshot` and `restore` carry it across a kill.

    `stride` steps are made between two looks of the host (1 on CPU, where a look costs nothing).
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
    ) -> None:
        self.attack, self.samples, self.oracle = attack, samples, oracle
        self.norm, self.seed, self.stride, self.keep_points = norm, seed, stride, keep_points
        n, slots, device = len(samples.y), oracle.slots, samples.y.device
        self.closest = bool(samples.eps.isinf().any())
        self.verdicts = Verdicts(torch.zeros(n, dtype=torch.bool), torch.full((n,), torch.inf, dtype=torch.float64))
        self.targets = attack.targets(samples.logits, samples.y)
        easy_last = margin(samples.logits, samples.y).cpu().argsort(stable=True).tolist()
        self.queue = [
            (row, rank, restart)
            for restart in range(attack.restarts)
            for rank in range(self.targets.shape[1])
            for row in easy_last
        ]
        self.next = 0
        self.item = [-1] * slots  # the place in the queue of each slot's item; -1: idle
        self.problem = self._problem([0] * slots)
        self.state = attack.start(self.problem)
        self.candidate = torch.empty_like(self.problem.region.x)
        self.limit = torch.zeros(slots, device=device)  # only smaller perturbations count (closest)
        self.found = torch.zeros(slots, dtype=torch.bool, device=device)  # has a candidate
        self.unchecked: list[tuple[int, Tensor, State]] = []  # item, candidate, state to go on with if refused
        self.refused: list[tuple[int, State]] = []

    @property
    def finished(self) -> int:
        """Items that have ended or were cancelled, of `len(queue)`."""
        return self.next - sum(item >= 0 for item in self.item) - len(self.unchecked) - len(self.refused)

    def run(self, watch: Callable[[Search], None] | None = None) -> Verdicts:
        """Work the queue off. `watch` is called after every round; what it raises stops the search."""
        while True:
            self._fill()
            if any(item >= 0 for item in self.item):
                self._advance()
            elif self.unchecked:
                self._verify()
            else:
                return self.verdicts
            if len(self.unchecked) >= self.oracle.slots:
                self._verify()
            if watch is not None:
                watch(self)

    def snapshot(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` goes on to the same verdicts."""
        while self.unchecked:
            self._verify()
        return {
            "next": self.next,
            "item": self.item,
            "state": vars(self.state),
            "candidate": self.candidate,
            "limit": self.limit,
            "found": self.found,
            "refused": [(item, vars(state)) for item, state in self.refused],
            "fell": self.verdicts.fell,
            "distance": self.verdicts.distance,
            "points": self.verdicts.points,
            "unverified": self.verdicts.unverified,
            "nonfinite": self.verdicts.nonfinite,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take the place of the search that made `saved` (same attack, samples, model and slots)."""
        kind = type(self.state)
        self.next, self.item = saved["next"], list(saved["item"])
        self.problem = self._problem([max(item, 0) for item in self.item])
        self.state = kind(**saved["state"])
        self.candidate, self.limit, self.found = saved["candidate"], saved["limit"], saved["found"]
        self.refused = [(item, kind(**state)) for item, state in saved["refused"]]
        self.verdicts = Verdicts(
            saved["fell"], saved["distance"], saved["points"], saved["unverified"], saved["nonfinite"]
        )

    def _problem(self, items: list[int]) -> Problem:
        device = self.samples.y.device
        row, rank, restart = (
            torch.tensor(column, device=device) for column in zip(*(self.queue[i] for i in items), strict=True)
        )
        target = self.targets[row, rank]
        index = self.samples.index[row]
        key = rng.keys(self.seed, self.attack.name, index, target, restart)
        region = around(self.norm, self.samples.x(row), self.samples.eps[row])
        return Problem(region, self.samples.y[row], target, key, restart)

    def _fill(self) -> None:
        """Give idle slots the refused items, then the next of the queue whose samples still stand."""
        idle = [slot for slot, item in enumerate(self.item) if item < 0]
        again = [(slot, *self.refused.pop()) for slot in idle[: len(self.refused)]]
        fresh: list[tuple[int, int]] = []
        for slot in idle[len(again) :]:
            while self.next < len(self.queue) and self.verdicts.fell[self.queue[self.next][0]] and not self.closest:
                self.next += 1
            if self.next == len(self.queue):
                break
            fresh.append((slot, self.next))
            self.next += 1
        for slot, item, state in again:
            self._place([slot], [item], self._problem([item]), state)
        if fresh:
            slots, items = [slot for slot, _ in fresh], [item for _, item in fresh]
            problem = self._problem(items)
            self._place(slots, items, problem, self.attack.start(problem))

    def _place(self, slots: list[int], items: list[int], problem: Problem, state: State) -> None:
        at = torch.tensor(slots, device=self.found.device)
        put(self.problem, at, problem)
        put(self.state, at, state)
        self.found[at] = False
        self.limit[at] = torch.inf
        for slot, item in zip(slots, items, strict=True):
            self.item[slot] = item

    def _advance(self) -> None:
        """`stride` answers and steps for all slots, then end the items that are felled or done."""
        p, attack = self.problem, self.attack
        for _ in range(self.stride):
            query = self.state.query
            answer = self.oracle.answer(attack, p, query)
            hit = answer.wrong & ~attack.done(self.state)
            if self.closest:
                size = p.region.size(query - p.region.x)
                hit &= size < self.limit
                self.limit = torch.where(hit, size, self.limit)
            else:
                hit &= ~self.found & p.region.contains(query)
            self.candidate = rows(hit, query, self.candidate)
            self.found |= hit
            self.state = attack.step(p, self.state, answer)
        done = attack.done(self.state)
        ended = done if self.closest else done | self.found
        for slot in ended.nonzero()[:, 0].tolist():
            item = self.item[slot]
            if item < 0:
                continue
            if self.found[slot]:
                row = torch.tensor([slot], device=self.found.device)
                self.unchecked.append((item, self.candidate[row].clone(), take(self.state, row)))
            self.item[slot] = -1

    def _verify(self) -> None:
        """Let the model itself judge the candidates, in passes of `slots` rows; free the slots of the fallen."""
        batch, self.unchecked = self.unchecked[: self.oracle.slots], self.unchecked[self.oracle.slots :]
        items = [item for item, _, _ in batch]
        p = self._problem(items)
        z = p.region.project(torch.cat([point for _, point, _ in batch]))
        logits = self.oracle.logits(z)
        good = (wrong(logits, p.y) & p.region.contains(z)).tolist()
        self.verdicts.nonfinite += int((~logits.isfinite()).any(1).sum())
        size = p.region.size(z.double() - p.region.x.double()).tolist()
        for place, (item, _, state) in enumerate(batch):
            row = self.queue[item][0]
            if good[place]:
                self.verdicts.fell[row] = True
                if size[place] < self.verdicts.distance[row]:
                    self.verdicts.distance[row] = size[place]
                    if self.keep_points:
                        self.verdicts.points[row] = z[place].cpu()
            else:
                self.verdicts.unverified += 1
                if not self.closest and not bool(self.attack.done(state)):
                    self.refused.append((item, state))
        if not self.closest:
            self.item = [-1 if item >= 0 and self.verdicts.fell[self.queue[item][0]] else item for item in self.item]
