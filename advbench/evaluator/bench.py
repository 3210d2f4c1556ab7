"""One model on one set of images: clean answers, and attacks on some of them at eps of their own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.attacks.crew import FEWEST, Crew
from advbench.attacks.engine import Attack
from advbench.attacks.graphed import cuda_graph
from advbench.attacks.losses import wrong
from advbench.attacks.multi_task import TaskOracle
from advbench.attacks.oracle import Oracle, out_of_memory
from advbench.attacks.search import Samples, Search, Verdicts
from advbench.attacks.transfer import oracle_for
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.evaluator import walk
from advbench.evaluator.journal import Journal
from advbench.models.base import Model
from advbench.models.search_copy import search_copy
from advbench.models.tasks import Head, sample_key
from advbench.record import Fates, Flag
from advbench.threat import FourierLinf

T = TypeVar("T")
STRIDE = {"cpu": 1, "cuda": 8}  # steps between two looks of the host
BLUR = 2.0**-5  # of the largest logit: four steps of bf16 there, and three times what was seen to keep an image


class Bench:
    """`net` in eval mode on the device of `data`. `logits` (n, K) and `correct` (n,) are of the clean images.

    `precision` "bf16": search in bf16 and verify in fp32, else all in fp32. `points` collects, by row, the
    nearest verified adversarial points when `keep_points`. `heads` are those of the tasks that attacks read. Out of
    memory, the slots are halved; `eager` holds the reasons why steps were not made as CUDA graphs.
    """

    def __init__(
        self,
        net: nn.Module,
        data: Dataset,
        *,
        norm: str,
        seed: int,
        slots: int,
        precision: str,
        journal: Journal,
        is_random: Callable[[nn.Module, Dataset], bool] = lambda net, data: False,
        keep_points: bool = False,
        heads: Mapping[str, Head] | None = None,
    ) -> None:
        self.net, self.data, self.norm, self.seed, self.journal = net, data, norm, seed, journal
        self.keep_points = keep_points or norm == FourierLinf.norm  # flags tell of their spectrum
        dtype = torch.bfloat16 if precision == "bf16" else None
        copy, _ = search_copy(net, dtype, example=data.batch(slice(0, 1))[0])
        self.oracle = Oracle(net, copy, slots=journal.slots or slots)
        self.heads = {name: head.to(data.device) for name, head in (heads or {}).items()}
        self._plain = None if precision == "bf16" else copy
        self.unverified = self.nonfinite = 0
        self.points: dict[int, Tensor] = {}
        self._sizes: dict[int, float] = {}  # of the perturbations to these points
        self.eager: dict[str, None] = {}
        self.oracle.random = self.fitting(lambda: is_random(net, data.subset(range(min(len(data), self.oracle.slots)))))
        self.logits = self.fitting(self._clean)
        self.correct: NDArray[np.bool_] = (~wrong(self.logits, data.labels)).cpu().numpy()
        self.mine: NDArray[np.bool_] = np.ones_like(self.correct)
        self.crew()

    def keep_to(self, rows: NDArray[np.int64]) -> None:
        """Attack these images alone: others are another process's."""
        self.mine[:] = False
        self.mine[rows] = True

    def crew(self) -> None:
        """As many threads as PyTorch has by now share the rows of a pass; a random model's numbers come from one stream
        for all, and it has one."""
        if not self.oracle.random:
            self.oracle.crew = Crew.of(self.net, self.oracle.slots)

    def _clean(self) -> Tensor:
        rows = torch.arange(len(self.data), device=self.data.device)
        return torch.cat([self.oracle.logits(self.data.batch(part)[0]) for part in rows.split(self.oracle.slots)])

    def fitting(self, work: Callable[[], T]) -> T:
        """What `work` returns; as often as it runs out of memory, it is called again with half the slots.

        What was decided before stays decided: the flag says by how many rows it was. UserError when one is too many.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0][:160]
            # Outside of the handler, whose traceback holds the tensors of what failed.
            if self.oracle.slots == 1:
                raise UserError(f"out of memory with one image at a time ({reason}): free some, or choose --device cpu")
            self.oracle.slots //= 2
            self.journal.halve(self.oracle.slots)
            gc.collect()
            if self.data.device.type == "cuda":
                torch.cuda.empty_cache()

    def strike(
        self, attack: Attack, rows: NDArray[np.int64], eps: NDArray[np.float64], *, plain: bool = False
    ) -> Verdicts:
        """The verdicts of `attack` on the images `rows` (m,), each at its `eps` (m,); infinite: the nearest point.

        `plain`: searched in fp32, whatever the precision.
        """
        at = torch.from_numpy(rows).to(self.data.device)
        samples = Samples(
            x=lambda some: self.data.batch(at[some])[0],
            y=self.data.labels[at],
            index=self.data.indices[at],
            eps=torch.from_numpy(eps).to(self.data.device),
            logits=self.logits[at],
            centres=self._centres() if attack.reads == "features" else None,
        )
        if attack.reads == "tasks":
            drawn = sample_key(self.seed, samples.index)
            samples.losses = self.fitting(
                lambda: TaskOracle(self.oracle, self.heads).clean(attack, samples.x, samples.y, drawn)
            )
        so_far: Verdicts | None = None

        def work() -> Verdicts:
            nonlocal so_far
            oracle = self._oracle_for(attack, plain=plain)
            graphs = self.data.device.type == "cuda" and not oracle.random
            search = Search(
                attack,
                samples,
                oracle,
                norm=self.norm,
                seed=self.seed,
                stride=STRIDE[self.data.device.type],
                keep_points=self.keep_points,
                capture=cuda_graph if graphs else None,
                before=so_far,
            )
            try:
                with search.oracle.crew.at_work():
                    return self.journal.run(f"{attack.name} in fp32" if plain else attack.name, search)
            finally:
                so_far = search.verdicts
                if search.eager:
                    self.eager[search.eager] = None

        verdicts = self.fitting(work)
        self.unverified += verdicts.unverified
        self.nonfinite += verdicts.nonfinite
        for row, point in verdicts.points.items():
            place, size = int(rows[row]), float(verdicts.distance[row])
            if size <= self._sizes.get(place, np.inf):
                self.points[place], self._sizes[place] = point, size
        return verdicts

    def _centres(self) -> Tensor:
        """The mean features (K, D) of the clean images of each class; 0 for a class without any. Raises UserError."""
        if not isinstance(self.net, Model):
            raise UserError("the attack reads features, which this model does not show: it must be one of the zoo's")
        parts = torch.arange(len(self.data), device=self.data.device).split(self.oracle.slots)
        with torch.no_grad():
            features = torch.cat([self.net.features(self.data.batch(part)[0]) for part in parts]).double()
        member = nn.functional.one_hot(self.data.labels, self.logits.shape[1]).double()
        return (member.T @ features / member.sum(0).clamp_min(1)[:, None]).float()

    def _oracle_for(self, attack: Attack, *, plain: bool) -> Oracle:
        oracle = self._plain_oracle() if plain else self.oracle
        return TaskOracle(oracle, self.heads) if attack.reads == "tasks" else oracle_for(attack, oracle, self.data)

    def _plain_oracle(self) -> Oracle:
        if self._plain is None:
            self._plain, _ = search_copy(self.net, example=self.data.batch(slice(0, 1))[0])
        return Oracle(self.net, self._plain, slots=self.oracle.slots, random=self.oracle.random)

    def curve(self, attacks: tuple[Attack, ...], eps: list[float], how: str, second: tuple[Attack, ...] = ()) -> Fates:
        """Each sample's place on the grid `eps`, by the walk `how` ("fast" or "exact").

        The attacks of `second` descend in fp32 from there; in `by` they count on after `attacks`. Then so does each of
        `attacks` for those who came so near in bf16 that its rounding may have kept them.
        """
        way = walk.Walk(eps, self.correct & self.mine)
        sizes, every = np.asarray(eps), (*attacks, *second)
        items = [one.items(self.logits.shape[1]) for one in every]
        blur = (BLUR * self.logits.abs().amax(1)).cpu().numpy()
        close = np.zeros((len(attacks), len(blur), len(sizes)), dtype=bool)  # who came near, by attack and point

        def strike(
            attack: int, rows: NDArray[np.int64], points: NDArray[np.int64], again: bool = False
        ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
            verdicts = self.strike(every[attack], rows, sizes[points], plain=again or attack >= len(attacks))
            if second and attack < len(attacks) and not again:
                close[attack, rows, points] = verdicts.near.numpy() > -blur[rows]
            # Of several items the one that is verified first decides the size: it is no property of the sample.
            alone = items[attack] == 1
            return verdicts.fell.numpy(), verdicts.distance.numpy() if alone else sizes[points]

        def room(attack: int) -> int:
            fewest = FEWEST if self.oracle.shrinks(every[attack], self.data.device) else self.oracle.slots
            return fewest // items[attack]

        if how == "fast":
            walk.fast(way, strike, len(attacks), room)
        else:
            walk.exact(way, strike, len(attacks))
        for number in range(len(attacks), len(every)):
            walk.descend(way, strike, number, room(number))
        for number in range(len(attacks)):
            opened = way.open()
            near = opened[close[number, opened, way.fell[opened] - 1]]
            walk.descend(way, partial(strike, again=True), number, room(number), near)
        return way.fates()

    def nearest(self, attacks: tuple[Attack, ...], eps: list[float]) -> Fates:
        """Each sample's nearest adversarial point over the attacks, and its place on the grid that follows."""
        struck = self.correct & self.mine
        distance = np.where(struck, np.inf, 0.0)
        way = walk.Walk(eps, struck)
        rows = np.flatnonzero(struck)
        for number, attack in enumerate(attacks):
            if not len(rows):
                break
            found = self.strike(attack, rows, np.full(len(rows), np.inf)).distance.numpy()
            nearer = found < distance[rows]
            distance[rows[nearer]] = found[nearer]
            way.by[rows[nearer]] = number
        # Bounds of Linf balls are computed in float32; other norms have contract.md's tolerance.
        bounds = way.eps.astype(np.float32).astype(float) if self.norm == "linf" else way.eps * (1 + 1e-6)
        fell = np.searchsorted(bounds, distance)
        way.fell = np.where(struck, np.maximum(fell, way.first), 0)
        way.by[way.fell == way.end] = -1
        fates = way.fates()
        return Fates(fates.fell, fates.by, np.where(np.isfinite(distance), distance, np.nan))

    def flags(self) -> list[Flag]:
        """What became of the slots, and of the CUDA graphs."""
        found = [
            Flag(
                name="slots",
                severity="note",
                detail=f"out of memory with {2 * slots} slots: went on with {slots}; "
                f"{fallen} samples had fallen, verified in passes of {2 * slots} rows or more",
            )
            for slots, fallen in self.journal.halvings
        ]
        found += [
            Flag(name="eager", severity="note", detail=f"steps not made as CUDA graphs: {why}") for why in self.eager
        ]
        return found
