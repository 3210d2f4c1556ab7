"""How much of an attack's time is the model's: passes made x the bare time of such a pass / seconds.

    python tests/bench/efficiency.py [--model SPEC] [--arch NAME] [--dataset NAME] [--eps EPS] [-n N] [--slots S]
        [--attacks LIST] [--threads T]

Bare is a pass of the model itself, without any attack, in the faster of the two memory layouts: forward without a
graph where only logits were asked for, forward and backward to the input where a gradient was. They are timed right
before and right after each attack, and the mean counts, since other work on the machine slows both alike; and all
times are the processor's, of all threads together, not the clock's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import nn

from advbench.allocator import keep_freed
from advbench.attacks.oracle import untouched
from advbench.checkpoint import load_model, weights_sha256
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.evaluator.bench import Bench
from advbench.evaluator.choose import choose
from advbench.evaluator.journal import Journal
from advbench.evaluator.slots import choose_slots
from advbench.models.search_copy import search_copy


@dataclass(frozen=True)
class Row:
    """One attack: processor's seconds it took, and its passes take bare."""

    attack: str
    robust: float
    seconds: float
    forwards: int
    backwards: int
    bare: float

    @property
    def efficiency(self) -> float:
        return self.bare / self.seconds


def bare_pass(net: nn.Module, data: Dataset, slots: int, seconds: float = 0.7) -> tuple[float, float]:
    """Seconds of a forward pass and of one with its backward, a row of a batch of `slots`: medians, best layout."""
    x = data.batch(slice(0, 1))[0].expand(slots, -1, -1, -1).contiguous()
    times: list[list[float]] = []
    for channels_last in (False, True):
        copy, _ = search_copy(net, channels_last=channels_last, example=x[:1])

        def forward(copy: nn.Module = copy) -> None:
            with torch.no_grad():
                copy(x)

        def both(copy: nn.Module = copy) -> None:
            z = x.detach().requires_grad_()
            torch.autograd.grad(copy(z).sum(), z)

        times.append([_median(work, seconds / 4) / slots for work in (forward, both)])
    return min(t[0] for t in times), min(t[1] for t in times)


def _median(work: Callable[[], None], seconds: float) -> float:
    work()
    taken: list[float] = []
    end = time.process_time() + seconds
    while not taken or time.process_time() < end:
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return median(taken)


def efficiency(
    net: nn.Module, data: Dataset, attacks: Sequence[str], eps: float, *, slots: int | None = None, norm: str = "linf"
) -> list[Row]:
    """One row an attack of `attacks`, each on all images that `net` gets right, on their device in fp32."""
    slots = slots or choose_slots(net, data, norm=norm, precision="fp32", weights_sha256=weights_sha256(net))
    found = []
    with untouched(net):
        for attack in choose(list(attacks), {}, norm=norm, classes=data.num_classes)[0]:
            journal = Journal()
            bench = Bench(net, data, norm=norm, seed=0, slots=slots, precision="fp32", journal=journal)
            rows = np.flatnonzero(bench.correct)
            before = bare_pass(net, data, slots)
            began = time.process_time()
            verdicts = bench.strike(attack, rows, np.full(len(rows), eps))
            seconds = time.process_time() - began
            after = bare_pass(net, data, slots)
            forward, both = (sum(pair) / 2 for pair in zip(before, after, strict=True))
            bare = (journal.forwards - journal.backwards) * forward + journal.backwards * both
            robust = (len(rows) - int(verdicts.fell.sum())) / len(data)
            found.append(Row(attack.name, robust, seconds, journal.forwards, journal.backwards, bare))
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
    print(f"{'attack':<10}{'CPU s':>9}{'forwards':>10}{'backwards':>11}{'bare s':>8}{'share':>7}{'robust %':>10}")
    for row in efficiency(net, data, given.attacks.split(","), given.eps, slots=given.slots):
        print(
            f"{row.attack:<10}{row.seconds:>9.1f}{row.forwards:>10}{row.backwards:>11}{row.bare:>8.1f}"
            f"{row.efficiency:>7.2f}{100 * row.robust:>10.1f}"
        )


if __name__ == "__main__":
    main()
