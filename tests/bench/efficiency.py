"""How much of an attack's time is the model's: passes made x the bare time of such a pass / seconds.

    python tests/bench/efficiency.py [--model SPEC] [--arch NAME] [--dataset NAME] [--eps EPS] [-n N] [--slots S]
        [--attacks LIST] [--threads T]

Bare is a pass without any attack, over images of the data set: forward without a graph where only logits were asked
for, forward and backward to the input where a gradient was. Two shares are given: `net`, of the passes of the model
itself, frozen, in the faster of the two memory layouts; `copy`, of those of the search copy that is really asked, and
takes less time. A few of each are timed every half second between the steps of an attack, since other work on the
machine slows all alike; and all times are the processor's, of all threads together, not the clock's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from advbench.allocator import keep_freed
from advbench.checkpoint import load_model
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.search_copy import search_copy
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.journal import Journal
from advbench.evaluator.runner import Runner
from advbench.evaluator.slots import choose_slots
from advbench.models.untouched import untouched

EVERY, WARM_UP, TIMES = 0.5, 3, 4


@dataclass(frozen=True)
class Row:
    """One attack: processor's seconds it took, and its passes take bare, by the model itself and by the copy."""

    attack: str
    robust: float
    seconds: float
    forwards: int
    backwards: int
    of_net: float
    of_copy: float


Work = Callable[[], object]


class Bare:
    """Bare passes of batches of `slots` rows, timed now and then; `spent` is the processor's time that this took."""

    def __init__(self, net: nn.Module, data: Dataset, slots: int) -> None:
        x = data.batch(torch.arange(slots) % len(data))[0]
        frozen = [deepcopy(net).eval().requires_grad_(False) for _ in range(2)]
        layouts = torch.contiguous_format, torch.channels_last
        nets = [
            _laid_out(one.to(memory_format=layout), layout)  # type: ignore[call-overload]
            for one, layout in zip(frozen, layouts, strict=True)
        ]
        copies = [search_copy(net, channels_last=last, example=x[:1])[0] for last in (False, True)]
        self._works = [
            min((kind(one, x) for one in ones), key=lambda work: median(_times(work, WARM_UP + TIMES)[WARM_UP:]))
            for ones in (nets, copies)
            for kind in (_forward, _both)
        ]
        self._found: tuple[list[float], ...] = ([], [], [], [])
        self._slots = slots
        self.spent, self._last = 0.0, -EVERY

    def __call__(self) -> bool:
        """Time some where it is long enough since the last ones; False: nothing is to be stopped."""
        began = time.process_time()
        if began - self._last >= EVERY:
            for work, found in zip(self._works, self._found, strict=True):
                found += _times(work, 1 + TIMES)[1:]
            self._last = time.process_time()
            self.spent += self._last - began
        return False

    def of(self, looks: int, gradients: int) -> tuple[float, float]:
        """Seconds of so many rows forward and so many with their gradient: by the model itself, and by the copy."""
        look, both, copys_look, copys_both = (median(found) / self._slots for found in self._found)
        return looks * look + gradients * both, looks * copys_look + gradients * copys_both


Passes = Callable[[Tensor], Tensor]


def _laid_out(net: nn.Module, layout: torch.memory_format) -> Passes:
    return lambda x: net(x.contiguous(memory_format=layout))  # type: ignore[no-any-return]


def _forward(passes: Passes, x: Tensor) -> Work:
    def work() -> None:
        with torch.no_grad():
            passes(x)

    return work


def _both(passes: Passes, x: Tensor) -> Work:
    def work() -> None:
        z = x.detach().requires_grad_()
        torch.autograd.grad(passes(z).sum(), z)

    return work


def _times(work: Work, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return found


def efficiency(
    net: nn.Module, data: Dataset, attacks: Sequence[str], eps: float, *, slots: int | None = None, norm: str = "linf"
) -> list[Row]:
    """One row an attack of `attacks`, each on all images that `net` gets right, on their device in fp32."""
    slots = slots or choose_slots(net, data, norm=norm, precision="fp32")
    found = []
    with untouched(net):
        for attack in resolve(list(attacks), {}, norm=norm, classes=data.num_classes)[0]:
            bare = Bare(net, data, slots)
            journal = Journal(stop=bare)
            runner = Runner(net, data, norm=norm, seed=0, slots=slots, precision="fp32", journal=journal)
            rows = np.flatnonzero(runner.correct)
            began = time.process_time()
            verdicts = runner.attack_at(attack, rows, np.full(len(rows), eps))
            seconds = time.process_time() - began - bare.spent
            passes = bare.of(journal.forwards - journal.backwards, journal.backwards)
            robust = (len(rows) - int(verdicts.fell.sum())) / len(data)
            found.append(Row(attack.name, robust, seconds, journal.forwards, journal.backwards, *passes))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pyautoattack:model_test")
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--eps", type=float, default=0.25 / 255)
    parser.add_argument("--attacks", default="apgd-ce,apgd-t,fab-t,square")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--slots", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed()  # as the command line does; bare passes have it too
    data = load(given.dataset, "test").subset(range(given.n))
    net = load_model(given.model, arch=given.arch, dataset=data).net
    print(f"{given.model}, {given.dataset}, eps {given.eps:g}, n {given.n}, {given.threads} threads")
    print(f"{'attack':<10}{'CPU s':>9}{'forwards':>10}{'backwards':>11}{'net':>7}{'copy':>7}{'robust %':>10}")
    for row in efficiency(net, data, given.attacks.split(","), given.eps, slots=given.slots):
        print(
            f"{row.attack:<10}{row.seconds:>9.1f}{row.forwards:>10}{row.backwards:>11}"
            f"{row.of_net / row.seconds:>7.2f}{row.of_copy / row.seconds:>7.2f}{100 * row.robust:>10.1f}"
        )


if __name__ == "__main__":
    main()
