"""What the host does between the steps of a search: milliseconds a round of all that is not a step.

    python tests/bench/cuda_host.py [--device cpu] [--slots 4096] [--stride S] [--rounds R]

The model is one linear map of 8x8 images and costs almost nothing. In a round the search fills idle slots, makes
`stride` steps, ends items and verifies hits. The device is waited for before and after each step, so that a step's time
holds all of its own kernels, and the rest of the clock is the host's part: its Python, its copies and its waiting.
Steps are not graphs here, which changes nothing of the rest. On a CPU it is CPU time, on CUDA the wall clock.

On a CPU the rest also holds tensor operations that a card would run itself, such as the filling of slots. A second run
times each of them; what is left is the host's own: Python, NumPy and the dispatch of operations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from cuda_bench import Bench
from cuda_table import Found, Job, Left
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from advbench.engine.attack import Samples
from advbench.engine.kernels import exact_kernels
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.runner import STRIDE

# Items that end early and late, one and several a sample, from within the ball and for the least size.
ATTACKS: dict[str, dict[str, Any]] = {
    "square": {"n_queries": 100},
    "apgd-t": {"steps": 20, "n_targets": 3},
    "fab-t": {"steps": 10, "n_targets": 3},
}
SHAPE, CLASSES, EPS = (1, 8, 8), 10, 0.02
CALIBRATION = 2000  # operations by which the cost of timing one is measured


class Linear(nn.Module):
    """One linear map of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SHAPE[1] * SHAPE[2], CLASSES, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(self.linear.weight.shape, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class HostPart:
    """The milliseconds of a round that are no step, those of its steps, and how many rounds there were.

    `operations`: on a CPU, how many of `rest` are tensor operations; on CUDA None, the device runs them.
    """

    rest: float
    steps: float
    rounds: int
    operations: float | None = None

    @property
    def split(self) -> str:
        """`rest` in words, as far as it is split."""
        if self.operations is None:
            return ""
        return f"{self.operations:.2f} ms in tensor operations, {self.rest - self.operations:.2f} ms its own, "


class Operations(TorchDispatchMode):
    """Sums up the `seconds` of tensor operations outside of `paused`, without what the timing adds to each."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock, self.added, self._paused = clock, 0.0, False
        x, began = torch.zeros(1), clock()
        for _ in range(CALIBRATION):
            x.add(1)
        plain, self.seconds = clock() - began, 0.0
        with self:
            for _ in range(CALIBRATION):
                x.add(1)
        self.added, self.seconds = (self.seconds - plain) / CALIBRATION, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        yield
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = self.clock()
        found = func(*args, **(kwargs or {}))
        if not self._paused:
            self.seconds += self.clock() - began - self.added
        return found


class Enough(Exception):
    """The search is not continued."""


def linear_samples(n: int, device: torch.device) -> tuple[Linear, Samples]:
    """The model, and n images that it gets right, on `device`."""
    net = Linear().eval().to(device)
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad():
        logits = net(x)
    eps = torch.full((n,), EPS, dtype=torch.float64, device=device)
    return net, Samples(
        x=lambda rows: x[rows], y=logits.argmax(1), index=torch.arange(n, device=device), eps=eps, logits=logits
    )


def host_part(
    attack: str,
    *,
    slots: int,
    device: torch.device,
    stride: int | None = None,
    rounds: int = 10**9,
    clock: Callable[[], float] | None = None,
) -> HostPart:
    """`attack` on twice as many samples as slots, to the end or for so many rounds; on a CPU twice.

    By the wall clock on CUDA, and on a CPU by its own time, which other work on the machine hardly changes.
    """
    clock = clock or (time.perf_counter if device.type == "cuda" else time.process_time)

    def run(operations: Operations | None) -> HostPart:
        return _host_part(attack, slots, device, stride or STRIDE[device.type], rounds, clock, operations)

    found = run(None)
    return found if device.type == "cuda" else replace(found, operations=run(Operations(clock)).operations)


def _host_part(
    attack: str,
    slots: int,
    device: torch.device,
    stride: int,
    rounds: int,
    clock: Callable[[], float],
    operations: Operations | None,
) -> HostPart:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    net, samples = linear_samples(2 * slots, device)
    (made,), _ = resolve([attack], ATTACKS[attack], norm="linf", classes=CLASSES)
    search = Search(made, samples, Oracle(net, slots=slots), norm="linf", seed=0, stride=stride)
    step, in_steps, done = search._step, 0.0, 0

    def timed(*given: Any) -> Any:
        nonlocal in_steps
        wait()
        start = clock()
        with operations.paused() if operations else nullcontext():
            found = step(*given)
        wait()
        in_steps += clock() - start
        return found

    def watch(_: Search) -> None:
        nonlocal done
        done += 1
        if done >= rounds:
            raise Enough

    search._step = timed  # type: ignore[method-assign]
    began = clock()
    with suppress(Enough), operations or nullcontext():
        search.run(watch)
    wait()
    whole = clock() - began
    in_operations = None if operations is None else 1e3 * operations.seconds / done
    return HostPart(1e3 * (whole - in_steps) / done, 1e3 * in_steps / done, done, in_operations)


def jobs(bench: Bench) -> list[Job]:
    """The host's part of each attack."""

    def run(attack: str, left: Left) -> Iterator[Found]:
        slots = bench.sizes.slots
        with exact_kernels(bench.device):
            host_part(attack, slots=64, device=bench.device, rounds=4)  # warm-up
            part = host_part(attack, slots=slots, device=bench.device)
        remark = f"{part.split}steps {part.steps:.2f} ms, {STRIDE[bench.device.type]} a round, {part.rounds} rounds"
        yield f"host, {attack}, {slots} slots", f"{part.rest:.2f} ms a round", remark

    return [Job(attack, partial(run, attack)) for attack in ATTACKS]


def main() -> None:
    """Print a line for each attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slots", type=int, default=4096)
    parser.add_argument("--stride", type=int, default=None, help="steps a round [as the engine has it on the device]")
    parser.add_argument("--rounds", type=int, default=10**9, help="at most so many")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    given = parser.parse_args()
    device = torch.device(given.device)
    for attack in given.attacks.split(","):
        with exact_kernels(device):
            host_part(attack, slots=64, device=device, rounds=4)  # warm-up
            part = host_part(attack, slots=given.slots, device=device, stride=given.stride, rounds=given.rounds)
        print(
            f"{attack}, {given.slots} slots on {device}: host {part.rest:.2f} ms a round, {part.split}"
            f"steps {part.steps:.2f} ms, {part.rounds} rounds"
        )


if __name__ == "__main__":
    main()
