"""Short probes of a model that show whether gradient attacks on it can be trusted.

Each probe runs the model itself, in float32, on a few of the evaluated images. Sources: Carlini et al. 2019
(1902.06705), Athalye et al. 2018 (1802.00420), Pintor et al. 2022 (2106.09947), the checks of AutoAttack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench import rng
from advbench.attacks.pgd import PGD
from advbench.engine.attack import Attack, Problem
from advbench.engine.losses import LOSSES, margin, wrong
from advbench.engine.oracle import Oracle, gradient
from advbench.evaluator.runner import Runner
from advbench.models.base import straight_through
from advbench.models.black_box import is_black_box
from advbench.record import Fates
from advbench.threat import around

MIN_PROBED_IMAGES, MAX_PROBED_IMAGES = 64, 128
MAX_COST = 0.02  # of the evaluation's gradient steps: what PGD may cost on more than MIN_PROBED_IMAGES
SHORT_PGD_STEPS, LONG_PGD_STEPS = 20, 100
EARLY_STEPS = 10  # of PGD, after which the loss must have risen
MIN_JUMP = 1e-2  # of the range of an image's logits: a smaller difference may be rounding
ROUNDING_STEPS = 8  # of the largest logit in float32: a smaller margin is lost in them
GREY_EPS = 0.5  # the Linf eps at which every ball contains the same grey image


@dataclass(frozen=True)
class Stability:
    """How much the logits of `n` images change with their batch.

    `difference`: the largest change, relative to the range of the logits. `by_order`: whether the order of one batch
    changes any logit. `flips`: how many images are classified correctly in one batch and wrongly in another.
    """

    n: int
    difference: float
    by_order: bool
    flips: int


@dataclass(frozen=True)
class Gradients:
    """Counts among `n` images.

    `zero_ce`, `zero_margin`: the gradient of the cross-entropy, of the margin, is zero. `bad`: one of them is NaN or
    infinite. `rounded`: the margin is less than ROUNDING_STEPS of the largest logit.
    """

    n: int
    zero_ce: int
    zero_margin: int
    bad: int
    rounded: int


@dataclass(frozen=True)
class Trace:
    """PGD on m images at one eps.

    `felled` (m,): the first step at which the model is wrong, inf if none. `stuck` (m,): standing after EARLY_STEPS
    steps, with a margin no nearer to failure than at the start. `bad` (m,): NaN or infinite logits at some step.
    """

    felled: Tensor
    stuck: Tensor
    bad: Tensor

    def fallen(self, steps: int) -> int:
        """How many images fell within `steps` steps."""
        return int((self.felled <= steps).sum())


class Probe:
    """Probes on images of a runner, evenly spread: `rows` of all images, `correct_rows` of the correctly classified.

    `ascent_rows` are the correctly classified images for PGD: MIN_PROBED_IMAGES, or more if MAX_COST allows.
    `followed`: the attacks that follow the model's gradient, none on a black box. `differentiable`: whether PGD
    has a form for the norm, and the model can be asked for a gradient at all.
    """

    def __init__(self, runner: Runner, attacks: Sequence[Attack]) -> None:
        self.runner, self.net, self.data = runner, runner.net, runner.data
        self.rows = spread(np.arange(len(runner.correct)), MAX_PROBED_IMAGES)
        self.correct_rows = spread(np.flatnonzero(runner.correct), MAX_PROBED_IMAGES)
        steps = sum(one.steps * one.restarts * max(getattr(one, "n_targets", 0), 1) * one.eot for one in attacks)
        affordable = math.ceil(MAX_COST * steps * len(runner.correct) / (LONG_PGD_STEPS + SHORT_PGD_STEPS))
        self.ascent_rows = spread(self.correct_rows, min(max(affordable, MIN_PROBED_IMAGES), MAX_PROBED_IMAGES))
        self.straight_through = any(one.straight_through for one in attacks)
        self.followed = () if is_black_box(self.net) else tuple(one for one in attacks if one.follows_gradient())
        self.differentiable = runner.norm in PGD.norms and (bool(self.followed) or self.has_gradient())

    def has_gradient(self) -> bool:
        """Whether a backward pass works and is not zero everywhere; a black box may raise any error."""
        query = self.at(self.rows[:2])[0].requires_grad_()
        try:
            with torch.enable_grad():
                return bool(gradient(self.net(query).float().amax(1), query).any())
        except Exception:
            return False

    def at(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Images (m, C, H, W), labels (m,) and dataset indices (m,) of `rows` (m,)."""
        where = torch.from_numpy(rows).to(self.data.device)
        x, y = self.data.batch(where)
        return x, y, self.data.indices[where]

    def logits(self, x: Tensor, size: int) -> Tensor:
        """Logits (m, K), in passes of at most `size` rows that are not padded to the number of slots."""
        with torch.no_grad():
            return torch.cat([self.net(part).float() for part in self.parts(x, size)])

    def parts(self, x: Tensor, size: int = MAX_PROBED_IMAGES) -> tuple[Tensor, ...]:
        """`x` in parts of at most `size` rows and at most the number of slots.

        The parts are almost equally long, because some models refuse a single row.
        """
        return x.tensor_split(math.ceil(len(x) / min(size, self.runner.oracle.slots)))

    def stability(self) -> Stability:
        """Compare the logits of the images in one order, in the reverse order, and in other batch sizes."""
        x, y, _ = self.at(self.rows)
        whole = self.logits(x, MAX_PROBED_IMAGES)
        others = [self.logits(x.flip(0), MAX_PROBED_IMAGES).flip(0), self.logits(x, len(x) // 2 + 1), self.logits(x, 8)]
        whole, others = whole.nan_to_num(), [one.nan_to_num() for one in others]
        spread = float(whole.max() - whole.min())
        return Stability(
            n=len(x),
            difference=max(float((whole - one).abs().max()) for one in others) / max(spread, 1e-30),
            by_order=not torch.equal(whole, others[0]),
            flips=int(torch.stack([wrong(whole, y) != wrong(one, y) for one in others]).any(0).sum()),
        )

    def gradients(self) -> Gradients:
        """Examine the gradients at the clean images, straight-through if an attack of the evaluation uses that."""
        found: dict[str, list[Tensor]] = {"ce": [], "cw": []}
        rounded = 0
        x, y, _ = self.at(self.correct_rows)
        for some, labels in zip(self.parts(x), self.parts(y), strict=True):
            for loss, kept in found.items():
                query = some.clone().requires_grad_()
                with torch.enable_grad(), straight_through(self.net) if self.straight_through else nullcontext():
                    logits = self.runner.oracle.judged(self.net(query).float(), labels)
                    value = LOSSES[loss](logits, labels, torch.full_like(labels, -1))
                    kept.append(gradient(value, query).flatten(1))
            size = logits.detach().abs().amax(1) * torch.finfo(torch.float32).eps
            rounded += int((margin(logits.detach(), labels).abs() < ROUNDING_STEPS * size).sum())
        ce, cw = (torch.cat(kept) for kept in found.values())
        return Gradients(
            n=len(x),
            zero_ce=int((ce == 0).all(1).sum()),
            zero_margin=int((cw == 0).all(1).sum()),
            bad=int((~ce.isfinite() | ~cw.isfinite()).any(1).sum()),
            rounded=rounded,
        )

    def jitter(self) -> int:
        """How many of the `correct_rows` the model knows as they are, and no point right beside them.

        Noise of half a quantisation step makes the answer wrong, and changes the logits much more than a second noise
        differs from the first. Where inputs are quantised, two noises differ as much.
        """
        x, y, index = self.at(self.correct_rows)
        here, (one, two) = (
            self.runner.oracle.logits(x),
            (
                self.runner.oracle.logits((x + (draw - 0.5) / self.data.levels).clamp(0, 1))
                for draw in (
                    rng.uniform(rng.keys(self.runner.seed, "jitter", index, place), tuple(x.shape[1:]))
                    for place in (0, 1)
                )
            ),
        )
        change, difference = (one - here).abs().amax(1), (two - one).abs().amax(1)
        return int((wrong(one, y) & wrong(two, y) & ~(change <= 3 * difference)).sum())

    def jumps(self) -> int:
        """At how many of the `correct_rows` the logits jump right beside the image.

        Two equal steps lead away from the image. In a continuous model both change the logits by about the same amount.
        In a model that knows the image, the first step makes all of the change. Steps of a thousandth and of a tenth of
        a quantisation step are tried.
        """
        x, _, index = self.at(self.correct_rows)
        inward = torch.where(x < 0.5, 1.0, -1.0)
        draw = inward * (0.5 + rng.uniform(rng.keys(self.runner.seed, "jump", index), tuple(x.shape[1:])) / 2)
        here, found = self.logits(x, MAX_PROBED_IMAGES), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        rounding = 2 * ROUNDING_STEPS * torch.finfo(torch.float32).eps * here.abs().amax(1)
        least = MIN_JUMP * (here.amax(1) - here.amin(1)) + rounding
        for part in (1e-3, 1e-1):
            step = draw * part / self.data.levels
            near, next_to = self.logits(x + step, MAX_PROBED_IMAGES), self.logits(x + 2 * step, MAX_PROBED_IMAGES)
            first, second = ((a - b).abs().amax(1) for a, b in ((near, here), (next_to, near)))
            found |= ~(first <= least + 10 * second)  # NaN is a jump
        return int(found.sum())

    def noise(self, fates: Fates, eps: Sequence[float]) -> tuple[NDArray[np.int64], int]:
        """The grid points, rising, whose balls hold noise that fells an image, and how many images were tried.

        Each is tried at the largest eps at which it stands, by noise of the sizes eps / 4, eps / 2 and eps.
        """
        sizes = np.asarray(eps)
        last = np.where(fates.fell < 0, len(sizes), fates.fell)[self.correct_rows] - 1
        rows = self.correct_rows[(last >= 0) & (sizes[last] > 0)]
        last = last[(last >= 0) & (sizes[last] > 0)].astype(np.int64)
        if not len(rows):
            return last, 0
        x, y, index = self.at(rows)
        at = torch.from_numpy(sizes[last]).to(x.device)
        smallest = torch.full(at.shape, torch.inf, dtype=torch.float64, device=x.device)
        for draw, part in enumerate((0.25, 0.5, 1.0)):
            z = around(self.runner.norm, x, at * part).sample(rng.keys(self.runner.seed, "noise", index, draw))
            fallen = wrong(self.runner.oracle.logits(z, y), y)
            smallest = torch.where(fallen, smallest.clamp(max=at * part), smallest)
        places = np.searchsorted(sizes, smallest.cpu().numpy() * (1 - 1e-9))
        return np.sort(places[places < len(sizes)]), len(rows)

    def ascend(
        self, eps: float, steps: int, *, straight_through: bool | None = None, rows: NDArray[np.int64] | None = None
    ) -> Trace:
        """PGD on the margin of `rows`, by default the `ascent_rows`, with steps of eps / 4 from a random start.

        The margin's gradient has a direction that does not depend on the scale of the logits. `straight_through` None:
        as the evaluation's attacks do.
        """
        through = self.straight_through if straight_through is None else straight_through
        pgd = PGD(name="probe", steps=steps, rel_step=0.25, loss="cw", straight_through=through)
        return self.trace(pgd, self.ascent_rows if rows is None else rows, eps)

    def trace(
        self, attack: Attack, rows: NDArray[np.int64], eps: float, start: Callable[[Problem], Tensor] | None = None
    ) -> Trace:
        """The attack on `rows` at `eps`, from its own start or from the points `start(problem)` (S, C, H, W)."""
        x, y, index = self.at(rows)
        attack, oracle = attack.for_model(self.runner.norm, self.data.num_classes), self.runner.plain_oracle()
        parts = [self._trace(attack, oracle, x[some], y[some], index[some], eps, start)
                 for some in self.parts(torch.arange(len(x), device=x.device))]  # fmt: skip
        return Trace(*(torch.cat(column, dim=-1).cpu() for column in zip(*parts, strict=True)))

    def problem(self, x: Tensor, y: Tensor, index: Tensor, eps: float) -> Problem:
        """The untargeted problem of images x (m, C, H, W), labels y and dataset indices at `eps`, which may be inf."""
        sizes = torch.full(y.shape, eps, dtype=torch.float64, device=y.device)
        key = rng.keys(self.runner.seed, "probe", index)
        return Problem(around(self.runner.norm, x, sizes), y, torch.full_like(y, -1), key)

    def _trace(
        self, attack: Attack, oracle: Oracle, x: Tensor, y: Tensor, index: Tensor, eps: float,
        start: Callable[[Problem], Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        p = self.problem(x, y, index, eps)
        state = attack.start(p)
        if start is not None:
            state.query = start(p)
        felled = torch.full(y.shape, torch.inf, device=y.device)
        stuck, bad = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y, dtype=torch.bool)
        for step in range(attack.steps + 1):
            self.runner.journal.poll()
            answer = oracle.answer(attack, p, state.query)
            inside = p.region.contains(state.query)
            felled = torch.where(answer.wrong & inside, felled.clamp(max=step), felled)
            bad |= ~answer.logits.isfinite().all(1) & inside
            if step == 0:
                before = margin(answer.logits, y)
            if step == EARLY_STEPS:
                stuck = felled.isinf() & ~(margin(answer.logits, y) > before)
            if bool(felled.isfinite().all()):
                break
            state = attack.step(p, state, answer)
        return felled, stuck, bad


def declared(net: nn.Module) -> int:
    """How many layers of `net` are declared non-differentiable."""
    with straight_through(net, on=True) as layers:
        return layers


def spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """`rows`, or `most` of them evenly spread if there are more."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
