"""One model on one set of images: clean answers, and attacks on some of them at eps of their own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.attacks.engine import Attack
from advbench.attacks.losses import wrong
from advbench.attacks.oracle import Oracle
from advbench.attacks.search import Samples, Search, Verdicts
from advbench.attacks.transfer import oracle_for
from advbench.data.dataset import Dataset
from advbench.evaluator import walk
from advbench.evaluator.journal import Journal
from advbench.models.search_copy import search_copy
from advbench.record import Fates

STRIDE = {"cpu": 1, "cuda": 8}  # steps between two looks of the host


class Bench:
    """`net` in eval mode on the device of `data`. `logits` (n, K) and `correct` (n,) are of the clean images.

    `precision` "bf16": search in bf16 and verify in fp32, else all in fp32. `points` collects, by row, the
    nearest verified adversarial points when `keep_points`.
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
        random: bool = False,
        keep_points: bool = False,
    ) -> None:
        self.net, self.data, self.norm, self.seed, self.journal = net, data, norm, seed, journal
        self.keep_points = keep_points
        dtype = torch.bfloat16 if precision == "bf16" else None
        copy, self.notes = search_copy(net, dtype, example=data.batch(slice(0, 1))[0])
        self.oracle = Oracle(net, copy, slots=slots, random=random)
        rows = torch.arange(len(data), device=data.device)
        self.logits = torch.cat([self.oracle.logits(data.batch(part)[0]) for part in rows.split(slots)])
        self.correct: NDArray[np.bool_] = (~wrong(self.logits, data.labels)).cpu().numpy()
        self.unverified = self.nonfinite = 0
        self.points: dict[int, Tensor] = {}

    def strike(self, attack: Attack, rows: NDArray[np.int64], eps: NDArray[np.float64]) -> Verdicts:
        """The verdicts of `attack` on the images `rows` (m,), each at its `eps` (m,); infinite: the nearest point."""
        at = torch.from_numpy(rows).to(self.data.device)
        samples = Samples(
            x=lambda some: self.data.batch(at[some])[0],
            y=self.data.labels[at],
            index=self.data.indices[at],
            eps=torch.from_numpy(eps).to(self.data.device),
            logits=self.logits[at],
        )
        search = Search(
            attack,
            samples,
            oracle_for(attack, self.oracle, self.data),
            norm=self.norm,
            seed=self.seed,
            stride=STRIDE[self.data.device.type],
            keep_points=self.keep_points,
        )
        verdicts = self.journal.run(attack.name, search)
        self.unverified += verdicts.unverified
        self.nonfinite += verdicts.nonfinite
        self.points.update({int(rows[row]): point for row, point in verdicts.points.items()})
        return verdicts

    def curve(self, attacks: tuple[Attack, ...], eps: list[float], how: str) -> Fates:
        """Each sample's place on the grid `eps`, by the walk `how` ("fast" or "exact")."""
        way = walk.Walk(eps, self.correct)
        sizes = np.asarray(eps)

        def strike(
            attack: int, rows: NDArray[np.int64], points: NDArray[np.int64]
        ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
            verdicts = self.strike(attacks[attack], rows, sizes[points])
            return verdicts.fell.numpy(), verdicts.distance.numpy()

        {"fast": walk.fast, "exact": walk.exact}[how](way, strike, len(attacks))
        return way.fates()

    def nearest(self, attacks: tuple[Attack, ...], eps: list[float]) -> Fates:
        """Each sample's nearest adversarial point over the attacks, and its place on the grid that follows."""
        distance = np.where(self.correct, np.inf, 0.0)
        by = np.full(len(distance), -1, dtype=np.int16)
        rows = np.flatnonzero(self.correct)
        for number, attack in enumerate(attacks):
            if not len(rows):
                break
            found = self.strike(attack, rows, np.full(len(rows), np.inf)).distance.numpy()
            nearer = found < distance[rows]
            distance[rows[nearer]] = found[nearer]
            by[rows[nearer]] = number
        fell = np.searchsorted(np.asarray(eps) * (1 + 1e-6), distance).astype(np.int16)
        if eps[0] == 0:
            fell[self.correct] = np.maximum(fell[self.correct], 1)
        never = fell == len(eps)
        fell[never], by[never] = -1, -1
        return Fates(fell, by, np.where(np.isfinite(distance), distance, np.nan))
