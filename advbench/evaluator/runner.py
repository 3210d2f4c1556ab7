"""One model on one set of images: its clean logits, and attacks on some of the images, each at its own eps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Samples
from advbench.engine.cuda_graph import cuda_graph
from advbench.engine.kernels import out_of_memory
from advbench.engine.losses import wrong
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.engine.search_copy import search_copy
from advbench.engine.verdicts import Verdicts
from advbench.engine.whole_batch import WholeBatch, attack_batch, joined
from advbench.errors import UserError
from advbench.evaluator import eps_grid
from advbench.evaluator.fp32_recheck import copy_error, misled, near_margins
from advbench.evaluator.journal import Journal
from advbench.evaluator.plan import Plan
from advbench.record import Fates, Flag
from advbench.threat import FourierLinf

T = TypeVar("T")
STRIDE = {"cpu": 1, "cuda": 8}  # steps of a search between two checks by the host
WIDTH_STEP = {"cpu": 16, "cuda": 8}  # rows by which the width of a search changes
# On CPUs no verdict depends on the width, as it does not on the number of processes, which follows the machine's cores.
EXACT = {"cpu": True, "cuda": False}
FELL, FAR, NEAR = range(3)  # how an image met an attack: it fell, or stood far from failure or near to it


class Runner:
    """Attacks on `net`, in eval mode, on the device of `data`.

    `logits` (n, K) and `correct` (n,) belong to the clean images. `rejects`: the model has one more logit, in `logits`
    too, by which it rejects an input; a clean image that it rejects is not `correct`. `precision` "bf16" searches in
    bf16 and verifies in fp32; "fp32" does all in fp32. With `keep_points`, `points` collects by row the nearest
    verified adversarial example (C, H, W), and `attempts` the point of the largest margin that failed, after that
    margin. When memory runs out, the number of slots is halved. `eager` holds the reasons why steps did not run as CUDA
    graphs. `compiler`: the backend of torch.compile for the search copy, "" for none. `keep_hits`: collect `points`,
    but no `attempts`. `proved` (n,), as in `Fates`: up to which grid point no attack can succeed, so that none is made;
    `skipped`: how many strikes those were, and the passes that they would have made.
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
        keep_hits: bool = False,
        rejects: bool = False,
        compiler: str = "",
    ) -> None:
        self.net, self.data, self.norm, self.seed, self.journal = net, data, norm, seed, journal
        self.slots = slots  # at the start; `oracle.slots` is lower once memory ran out
        self.keep_attempts = keep_points
        self.keep_points = keep_points or keep_hits or norm == FourierLinf.norm  # for the flags on the spectrum
        dtype = torch.bfloat16 if precision == "bf16" else None
        copy, _ = search_copy(net, dtype, example=data.batch(slice(0, 1))[0])
        self.oracle = Oracle(net, copy, slots=slots, rejects=rejects)
        self._copy_fault = copy.fault
        self.in_bf16 = precision == "bf16"
        self._fp32_copy = None if self.in_bf16 else copy
        self.counted = True  # whether all passes of attacks on whole batches could be counted
        self._used_gradients: dict[str, bool] = {}  # by attack on whole batches that ran
        # By attack and eps: the rows of the first of its batches, and which of them fell.
        self.first_batches: dict[tuple[str, float], tuple[NDArray[np.int64], NDArray[np.bool_]]] = {}
        self.forget()
        self.oracle.random = self.halving_slots(
            lambda: is_random(net, data.subset(range(min(len(data), self.oracle.slots))))
        )
        self.compiled = copy.compile_with(compiler) if compiler and not self.oracle.random else None
        self.logits = self.halving_slots(self._clean)
        self.correct: NDArray[np.bool_] = (~wrong(self.logits, data.labels)).cpu().numpy()
        self.own: NDArray[np.bool_] = np.ones_like(self.correct)
        self.proved: NDArray[np.int16] = np.full(len(self.correct), -1, dtype=np.int16)
        self.copy_error = journal.copy_error or 0.0
        if self.in_bf16 and journal.copy_error is None:
            self.copy_error = self.halving_slots(lambda: copy_error(self.oracle, data, self.logits))
        journal.copy_error = self.copy_error

    def forget(self) -> None:
        """Forget what the attacks found, which the journal tells again."""
        self.unverified = self.nonfinite = 0
        self.skipped = (0, 0)
        self.returned = self.outside = 0  # points of attacks on whole batches, and those of them outside of the ball
        self.points: dict[int, Tensor] = {}
        self._sizes: dict[int, float] = {}  # of the perturbations in `points`
        self.attempts: dict[int, tuple[float, Tensor]] = {}
        self.eager: dict[str, None] = {}
        self.refused = np.full(len(self.data), np.inf)  # by image: the least eps, or size, of a hit that it refused
        self.oracle.slots = self.journal.slots or self.slots  # fewer where other processes ran out of memory

    def restrict_to(self, rows: NDArray[np.int64]) -> None:
        """Attack only the images `rows`, the share of this process."""
        self.own[:] = False
        self.own[rows] = True

    def _clean(self) -> Tensor:
        rows = torch.arange(len(self.data), device=self.data.device)
        return torch.cat([self.oracle.logits(self.data.batch(part)[0]) for part in rows.split(self.oracle.slots)])

    def halving_slots(self, work: Callable[[], T]) -> T:
        """The result of `work`, which is called again with half the slots whenever it runs out of memory.

        Earlier hits stay valid; the flag "slots" says how many there were and in passes of how many rows they were
        verified. Raises UserError when memory does not suffice for one row.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0][:160]
            # Outside of the handler: there, the traceback still holds the tensors of the failed call.
            if self.oracle.slots == 1:
                raise UserError(
                    f"out of memory with one image at a time ({reason}): free memory, or choose --device cpu"
                )
            self.oracle.slots //= 2
            self.journal.halve(self.oracle.slots)
            gc.collect()
            if self.data.device.type == "cuda":
                torch.cuda.empty_cache()

    def attack_at(
        self, attack: Attack, rows: NDArray[np.int64], eps: NDArray[np.float64], *, in_fp32: bool = False
    ) -> Verdicts:
        """The verdicts of `attack` on the images `rows` (m,), each at its own `eps` (m,).

        An infinite eps asks for the nearest adversarial example. `in_fp32` searches in fp32, whatever the precision.
        """
        if isinstance(attack, WholeBatch):
            verdicts = self._whole_batches(attack, rows, eps)
        else:
            verdicts = self._search(attack, rows, eps, in_fp32)
        if in_fp32 or not self.in_bf16:  # what bf16 found is attacked again in fp32
            refused = verdicts.refused.numpy()
            counts = np.isfinite(refused) & (np.isinf(eps) | ~verdicts.fell.numpy())
            np.minimum.at(self.refused, rows[counts], np.where(np.isinf(eps), refused, eps)[counts])
        self.unverified += verdicts.unverified
        self.nonfinite += verdicts.nonfinite
        self.outside += verdicts.outside
        for row, point in verdicts.points.items():
            place, size = int(rows[row]), float(verdicts.distance[row])
            if size <= self._sizes.get(place, np.inf):
                self.points[place], self._sizes[place] = point, size
        for row, (reached, _, point) in verdicts.attempts.items():
            place = int(rows[row])
            if place not in self.attempts or reached > self.attempts[place][0]:
                self.attempts[place] = reached, point
        return verdicts

    def _search(self, attack: Attack, rows: NDArray[np.int64], eps: NDArray[np.float64], in_fp32: bool) -> Verdicts:
        at = torch.from_numpy(rows).to(self.data.device)
        samples = Samples(
            x=lambda some: self.data.batch(at[some])[0],
            y=self.data.labels[at],
            index=self.data.indices[at],
            eps=torch.from_numpy(eps).to(self.data.device),
            logits=self.oracle.judged(self.logits[at], self.data.labels[at]),
        )
        so_far: Verdicts | None = None

        def work() -> Verdicts:
            nonlocal so_far
            oracle = attack.oracle(self._fp32_oracle() if in_fp32 else self.oracle, self.seed)
            graphs = self.data.device.type == "cuda" and not oracle.random
            search = Search(
                attack,
                samples,
                oracle,
                norm=self.norm,
                seed=self.seed,
                stride=STRIDE[self.data.device.type],
                width_step=WIDTH_STEP[self.data.device.type],
                exact=EXACT[self.data.device.type],
                keep_points=self.keep_points,
                keep_attempts=self.keep_attempts,
                keep_margins=self.in_bf16 and not in_fp32,
                capture=cuda_graph if graphs else None,
                before=so_far,
            )
            try:
                return self.journal.run(attack.name, search, recheck=in_fp32)
            finally:
                so_far = search.verdicts
                if search.eager:
                    self.eager[search.eager] = None

        return self.halving_slots(work)

    def _whole_batches(self, attack: WholeBatch, rows: NDArray[np.int64], eps: NDArray[np.float64]) -> Verdicts:
        """The verdicts of an attack on whole batches. The journal keeps each finished batch."""
        (size,) = set(eps.tolist())  # all images at the same eps, because the curve is exact
        found = []
        for start in range(0, len(rows), self.slots):
            work = partial(self._batch, attack, rows[start : start + self.slots], size, start, len(rows))
            found.append(self.halving_slots(partial(self.journal.once, work)))
        whole = joined(found)
        self.counted &= whole["counted"]
        self.returned += len(rows)
        used = whole["backwards"] > 0 or not whole["counted"]
        self._used_gradients[attack.name] = used or self._used_gradients.get(attack.name, False)
        self.first_batches[attack.name, size] = rows[: self.slots], found[0]["fell"].numpy()
        felled = whole["fell"].nonzero()[:, 0].tolist() if self.keep_points else []
        tried = (whole["margin"] > -torch.inf).nonzero()[:, 0].tolist() if self.keep_attempts else []
        attempts = {
            row: (float(whole["margin"][row]), 0, point) for row, point in zip(tried, whole["attempts"], strict=True)
        }
        return Verdicts(
            whole["fell"],
            whole["distance"],
            torch.full((len(rows),), -torch.inf),
            torch.full((len(rows),), torch.inf, dtype=torch.float64),
            dict(zip(felled, whole["points"], strict=True)),
            attempts,
            nonfinite=whole["nonfinite"],
            outside=whole["outside"],
        )

    def _batch(self, attack: WholeBatch, rows: NDArray[np.int64], eps: float, done: int, of: int) -> dict[str, Any]:
        """The results of one batch, in parts of as many rows as there are slots, after `done` of `of` images."""
        parts: list[dict[str, Any]] = []
        attacked = self.journal.forecast.batch(attack.name, done, of)
        for some in torch.from_numpy(rows).to(self.data.device).split(self.oracle.slots):
            before = sum(len(part["fell"]) for part in parts)

            def watch(forwards: int, before: int = before, most: int = len(some)) -> None:
                if not attack.from_outside:  # of others it is not known how many passes they make
                    attacked(before + min(forwards / attack.steps, most))
                self.journal.tell()

            attacked(before)
            self.journal.tell()
            x, y = self.data.batch(some)
            part = attack_batch(
                attack, self.oracle, x, y, self.data.indices[some], eps, norm=self.norm, seed=self.seed, watch=watch
            )
            left_out = [] if self.keep_attempts else ["attempts"]
            left_out += [] if self.keep_points else ["points"]
            parts.append({**part, **{name: part[name][:0] for name in left_out}})
        attacked(len(rows))
        self.journal.forecast.end()
        return joined(parts)

    def as_seen(self, attack: Attack) -> Attack:
        """`attack`, which made no backward pass if it is one on whole batches that was seen to make none."""
        only = isinstance(attack, WholeBatch) and not self._used_gradients.get(attack.name, True)
        return replace(attack, queries_only=True) if only else attack  # type: ignore[call-arg]

    def moved(self, attack: WholeBatch, eps: float) -> tuple[int, int]:
        """How many images of the first batch at `eps` fall or stand otherwise if it is attacked again, and of how many.

        The seed is the same, so that any is a random number of the attack's own.
        """
        rows, fell = self.first_batches[attack.name, eps]
        again = self.halving_slots(partial(self._batch, attack, rows, eps, 0, len(rows)))
        return int((again["fell"].numpy() != fell).sum()), len(rows)

    def _fp32_oracle(self) -> Oracle:
        if self._fp32_copy is None:
            self._fp32_copy, _ = search_copy(self.net, example=self.data.batch(slice(0, 1))[0])
        return self._like(self._fp32_copy)

    def plain_oracle(self) -> Oracle:
        """An oracle that asks the model itself, in float32, without a search copy."""
        return self._like(None)

    def _like(self, search: nn.Module | None) -> Oracle:
        made = self.oracle
        return Oracle(self.net, search, slots=made.slots, random=made.random, rejects=made.rejects)

    def curve(self, plan: Plan, sizes: Sequence[float]) -> Fates:
        """Each image's fate on the eps grid `sizes`, by the fast or the exact curve of the plan.

        After a search in bf16 the attacks of the recheck refine the grid points of images in doubt downwards in fp32
        (see `fp32_recheck`). Then each attack without gradients does so too, on the images that it brought near. The
        escalation comes after that, in the same way.
        """
        grid = eps_grid.EpsGrid(sizes, self.correct & self.own)
        at, first, count = np.asarray(sizes), len(plan.attacks), len(plan.every)
        checks = range(first, first + len(plan.recheck))
        items = [one.items(self.data.num_classes) for one in plan.every]
        near_margin = near_margins(self.copy_error, self.logits)
        stood = np.zeros((count, len(near_margin), len(at)), dtype=np.int8)  # by attack, image, point: FAR or NEAR
        rechecked = np.zeros(0, dtype=np.int64)
        forecast = self.journal.forecast

        def strike_at(
            attack: int, rows: NDArray[np.int64], points: NDArray[np.int64], again: bool = False
        ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
            in_fp32 = again or attack in checks
            more = 0 if attack in checks else grid.end - 1 - int(points[0])
            standing = len(rows) if attack in checks else len(grid.open())
            forecast.strike(attack, 0 if again else standing, more)
            open_ = points > self.proved[rows]
            fell, size = np.zeros(len(rows), dtype=np.bool_), np.where(open_, at[points], np.inf)
            passes = sum(plan.every[attack].passes(self.data.num_classes))
            self.skipped = self.skipped[0] + int((~open_).sum()), self.skipped[1] + passes * int((~open_).sum())
            stood[attack, rows[~open_], points[~open_]] = FAR
            rows, points = rows[open_], points[open_]
            if not len(rows):
                return fell, size
            verdicts = self.attack_at(plan.every[attack], rows, at[points], in_fp32=in_fp32)
            fell[open_] = verdicts.fell.numpy()
            if plan.recheck and not in_fp32:
                near = verdicts.best_margin.numpy() > -near_margin[rows]
                stood[attack, rows, points] = np.where(fell[open_], FELL, np.where(near, NEAR, FAR))
            # With several items, the size is that of the first verified one, which depends on the other samples. The
            # verdict must not, so the grid point replaces it.
            if items[attack] == 1:
                size[open_] = verdicts.distance.numpy()
            return fell, size

        def parallel_strikes(attack: int) -> int:
            return self.slots // items[attack]  # were it of halved slots, a journal would not tell the same strikes

        def brought_near(attacks: range) -> NDArray[np.int64]:
            # At the highest point where the attack failed: strikes below may not be due (see `eps_grid`).
            some = stood[attacks.start : attacks.stop]
            highest = len(at) - 1 - (some[:, :, ::-1] > FELL).argmax(2)
            last = np.take_along_axis(some, highest[:, :, None], 2)
            return np.intersect1d(grid.open(), np.flatnonzero((last == NEAR).any((0, 2))))

        def recheck(attacks: range) -> None:
            nonlocal rechecked
            near = brought_near(attacks)
            far = np.setdiff1d(grid.open(), near)
            in_doubt = np.union1d(near, far[self._misled(plan.recheck[0], far)])
            fresh = np.setdiff1d(in_doubt, rechecked)
            rechecked = np.union1d(rechecked, fresh)
            for number in checks:
                eps_grid.refine_down(grid, strike_at, number, samples=np.intersect1d(grid.open(), fresh))
            for number in attacks:
                if not plan.every[number].follows_gradient():
                    near = brought_near(range(number, number + 1))
                    eps_grid.refine_down(grid, partial(strike_at, again=True), number, samples=near)

        if plan.curve == "fast":
            eps_grid.fast(grid, strike_at, first, parallel_strikes)
        else:
            eps_grid.exact(grid, strike_at, first)
        if plan.recheck:
            recheck(range(first))
        if plan.curve == "exact":
            eps_grid.exact(grid, strike_at, count, checks.stop)
        else:
            for number in range(checks.stop, count):
                eps_grid.refine_down(grid, strike_at, number, parallel_strikes(number))
        if plan.recheck and plan.escalated:
            recheck(range(checks.stop, count))
        return grid.fates()

    def _misled(self, attack: Attack, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the images `rows` (m,) are `misled`. The journal keeps it, because the next searches follow from it:
        noise, or passes of other sizes, may decide otherwise."""
        some = self.data.subset(rows.tolist())

        def work() -> dict[str, Any]:
            bf16, fp32 = self._like(self.oracle.search), self._fp32_oracle()
            found = torch.from_numpy(misled(bf16, fp32, attack, some, self.norm))
            forwards, backwards = bf16.forwards + fp32.forwards, bf16.backwards + fp32.backwards
            return {"fell": found[:0], "misled": found, "forwards": forwards, "backwards": backwards}

        found: Tensor = self.halving_slots(partial(self.journal.once, work))["misled"]
        return found.numpy()

    def nearest(self, attacks: Sequence[Attack], sizes: Sequence[float]) -> Fates:
        """Each image's fate on the eps grid `sizes`, from its nearest adversarial example over all attacks."""
        struck = self.correct & self.own
        distance = np.where(struck, np.inf, 0.0)
        grid = eps_grid.EpsGrid(sizes, struck)
        rows = np.flatnonzero(struck)
        for number, attack in enumerate(attacks):
            if not len(rows):
                break
            self.journal.forecast.strike(number, len(rows))
            found = self.attack_at(attack, rows, np.full(len(rows), np.inf)).distance.numpy()
            nearer = found < distance[rows]
            distance[rows[nearer]] = found[nearer]
            grid.by[rows[nearer]] = number
        # As the balls of other attacks: Linf bounds are computed in float32, other norms have a tolerance of 1e-6.
        bounds = grid.eps.astype(np.float32).astype(float) if self.norm == "linf" else grid.eps * (1 + 1e-6)
        fell = np.searchsorted(bounds, distance)
        grid.fell = np.where(struck, np.maximum(fell, grid.first), 0)
        grid.by[grid.fell == grid.end] = -1
        fates = grid.fates()
        return Fates(fates.fell, fates.by, np.where(np.isfinite(distance), distance, np.nan))

    def unresolved(self, fates: Fates, sizes: Sequence[float]) -> NDArray[np.int64]:
        """The lowest grid points (m,), rising, at which m images stand although the search copy fell.

        Those are images with a hit there that the model refused.
        """
        point = np.searchsorted(np.asarray(sizes) * (1 + 1e-6), self.refused)
        return np.sort(point[(point < len(sizes)) & ((fates.fell < 0) | (fates.fell > point))])

    def flags(self) -> list[Flag]:
        """Notes on halved slots, on a search copy that failed, and on steps that did not run as CUDA graphs."""
        found = [
            Flag(
                name="slots",
                severity="note",
                detail=f"out of memory with {2 * slots} slots: continued with {slots}; "
                f"{fallen} hits before were verified in passes of {2 * slots} rows or more",
            )
            for slots, fallen in self.journal.halvings
        ]
        if self._copy_fault and not self.oracle.random:
            detail = f"attacks search the model itself, which takes longer: a faster copy fails ({self._copy_fault})"
            found.append(Flag(name="search-copy", severity="note", detail=detail))
        if self.compiled is not None and self.compiled.reason:
            detail = f"the search copy runs without torch.compile, which takes longer: {self.compiled.reason}"
            found.append(Flag(name="eager", severity="note", detail=detail))
        found += [
            Flag(name="eager", severity="note", detail=f"steps did not run as CUDA graphs: {why}") for why in self.eager
        ]
        return found
