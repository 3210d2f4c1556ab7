"""Probes of another kind than the attacks: what they find beyond these says that the attacks were misled.

Three searches on images that stand under the attacks, by the model itself in float32:
- labels: RayS (2006.12792) reads labels alone, so no false gradient or confidence misleads it;
- units: PGD from points that raise or lower one hidden unit. Where the loss has no slope around an image, such a unit
  may still have one;
- outputs: PGD from points that raise a random combination of the logits (ODI, Tashiro et al. 2020, 2003.06878).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from advbench import rng
from advbench.attacks.pgd import PGD
from advbench.attacks.rays import RayS
from advbench.engine.attack import Answer, Problem
from advbench.engine.oracle import gradient
from advbench.evaluator.probes import LONG_PGD_STEPS, MAX_PROBED_IMAGES, SHORT_PGD_STEPS, Probe, spread
from advbench.record import Fates

NORMS_OF_STARTS = ("linf", "l2")  # in which a few steps of size eps reach far
MAX_IMAGES = 64
START_STEPS, PGD_STEPS = 7, 20
OUTPUT_STARTS, UNIT_STARTS = 2, 6
MAX_QUERIES, MIN_QUERIES = 500, 50  # of RayS for each image; fewer show nothing
CLEAN_PASSES = 17  # of each probed image, for the probes at and right beside it
MAX_SHARE = 0.1  # of the attacks' passes that RayS may cost

Value = Callable[[Tensor], Tensor]


class Beyond:
    """The searches on images that stand at grid point `place`, under plain PGD too if the model has a gradient.

    What plain PGD fells says that the attacks were weak; what it does not, that they were misled.
    """

    def __init__(self, probe: Probe, fates: Fates, place: int, eps: float) -> None:
        self.probe, self.eps, self.runner = probe, eps, probe.runner
        rows = spread(np.flatnonzero(fates.standing(place)), MAX_PROBED_IMAGES)
        if len(rows) and probe.differentiable:
            rows = rows[probe.ascend(eps, LONG_PGD_STEPS, rows=rows).felled.isinf().numpy()]
        self.rows = spread(rows, MAX_IMAGES)

    def from_starts(self) -> Iterator[tuple[str, str, int]]:
        """For each kind of starts its name, what it is, and how many of `rows` it fells."""
        if not len(self.rows) or self.runner.norm not in NORMS_OF_STARTS:
            return
        if layers := hidden_layers(self.runner.net):
            found = self.pgd_from(UNIT_STARTS, lambda p, draw: self.unit(layers, p, draw))
            yield "found-from-units", "PGD from points that drive single units", found
        found = self.pgd_from(OUTPUT_STARTS, self.outputs)
        yield "found-from-outputs", "PGD from points that drive the outputs at random", found

    def affordable_queries(self) -> int:
        """The queries of RayS for each image: MAX_QUERIES, or fewer where the attacks cost little.

        Attacks whose passes nobody counted are taken to cost enough.
        """
        passes = self.runner.journal.forwards + self.runner.journal.backwards
        return min(MAX_QUERIES, int(MAX_SHARE * passes / len(self.rows))) if passes and len(self.rows) else MAX_QUERIES

    def by_labels(self, queries: int) -> Tensor:
        """(m,) float64: the size of the nearest adversarial example that RayS finds of each image, inf if none."""
        rays = RayS(name="probe", n_queries=queries)
        x, y, index = self.probe.at(self.rows)
        parts = []
        for some in self.probe.parts(torch.arange(len(x), device=x.device)):
            p = self.probe.problem(x[some], y[some], index[some], torch.inf)
            oracle = self.runner.plain_oracle()
            state, nearest = rays.start(p), p.region.eps
            for _ in range(queries):
                self.runner.journal.poll()
                answer = oracle.answer(rays, p, state.query)
                size = p.region.size(state.query.double() - p.region.x.double())
                nearest = torch.where(answer.wrong, torch.minimum(nearest, size), nearest)
                state = rays.step(p, state, answer)
            parts.append(nearest.cpu())
        return torch.cat(parts)

    def pgd_from(self, starts: int, value: Callable[[Problem, int], Value]) -> int:
        """How many images PGD on the margin fells from one of `starts` points that raise a `value`."""
        found = torch.zeros(len(self.rows), dtype=torch.bool)
        pgd = PGD(name="probe", steps=PGD_STEPS, rel_step=0.25, loss="cw", straight_through=self.probe.straight_through)
        for draw in range(starts):
            standing = np.flatnonzero(~found.numpy())
            if not len(standing):
                break
            start = partial(self.start, value, draw)
            trace = self.probe.trace(pgd, self.rows[standing], self.eps, start)
            found[torch.from_numpy(standing)] = trace.felled.isfinite()
        return int(found.sum())

    def start(self, value: Callable[[Problem, int], Value], draw: int, p: Problem) -> Tensor:
        """The points (S, C, H, W) after START_STEPS steps of size eps from x along the gradient of a value."""
        pgd = PGD(name="probe", steps=START_STEPS, rel_step=1.0, random_start=False).for_model(
            self.runner.norm, self.runner.data.num_classes
        )
        state, none, climbed = pgd.start(p), torch.zeros_like(p.y), value(p, draw)
        for _ in range(START_STEPS):
            query = state.query.detach().requires_grad_()
            with torch.enable_grad():
                slope = gradient(climbed(query), query).nan_to_num(0.0, 0.0, 0.0)
            state = pgd.step(p, state, Answer(none[:, None], none.bool(), none, slope))
        return state.query.detach()

    def outputs(self, p: Problem, draw: int) -> Value:
        """sum_c w_c z_c for each image, w uniform in [-1, 1]."""
        w = 2 * rng.uniform(rng.fold(p.key, 1 + draw), (self.runner.logits.shape[1],)) - 1
        return lambda z: (w * self.runner.net(z).float()).sum(1)

    def unit(self, layers: list[nn.Module], p: Problem, draw: int) -> Value:
        """Plus or minus one unit, drawn for each image, of a hidden layer; the layers take turns."""
        layer = layers[draw * len(layers) // UNIT_STARTS if len(layers) > UNIT_STARTS else draw % len(layers)]
        place, sign = rng.uniform(rng.fold(p.key, 100 + draw), (2,)).unbind(1)

        def value(z: Tensor) -> Tensor:
            seen: list[Tensor] = []
            with layer.register_forward_hook(lambda module, inputs, out: seen.append(out.clone())):
                self.runner.net(z)
            if not seen or not isinstance(seen[-1], Tensor) or len(seen[-1]) != len(z):
                return z.new_zeros(len(z))
            out = seen[-1].float().flatten(1)
            units = (place * out.shape[1]).long()[:, None]
            return out.gather(1, units)[:, 0] * torch.where(sign < 0.5, -1, 1)

        return value


def expected_passes(n: int, spent: float) -> float:
    """The forward passes of single images that all probes of n images make at one eps, if no image falls.

    `spent`: the passes of the attacks.
    """
    few, many = min(n, MAX_IMAGES), min(n, MAX_PROBED_IMAGES)
    pgd = 2 * LONG_PGD_STEPS + SHORT_PGD_STEPS
    starts = (UNIT_STARTS + OUTPUT_STARTS) * (START_STEPS + PGD_STEPS)
    return (CLEAN_PASSES + pgd) * many + starts * few + min(MAX_QUERIES * few, MAX_SHARE * spent)


def hidden_layers(net: nn.Module) -> list[nn.Module]:
    """The linear and convolutional layers of `net`; one of them may give the outputs."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return [module for module in net.modules() if isinstance(module, kinds)]
