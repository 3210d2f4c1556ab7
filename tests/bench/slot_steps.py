"""Where the slot-steps of an evaluation go: rows x steps, by part, counted on the CPU by the rules of a CUDA device.

    python tests/bench/slot_steps.py --model SPEC [--arch NAME] [--dataset NAME] [--eps LIST] [-n N] [--slots S]
        [--stride N] [--precision fp32|bf16] [--attack SET] [--curve fast|exact] [--set FIELD=VALUE]...

A row is useful in a step if its item still searches: it is not idle, not done and has no hit that waits for the host.
Searches in fp32 beside those in bf16 are the recheck; verification is the passes of the model itself, in which a row
is useful if it holds a point. Cost is in passes of one row in bf16, of which one in fp32 is worth FP32_PASSES.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from advbench.checkpoint import load_model
from advbench.data import load
from advbench.engine.search import Search
from advbench.engine.slots import Slots
from advbench.evaluator import Settings, evaluate, runner

FP32_PASSES = 8  # with bf16 matrix cores beside fp32 without TF32
VERIFICATION = "verification"


@dataclass
class Part:
    """What one part of an evaluation took."""

    searches: int = 0
    rows: int = 0
    useful: int = 0
    passes: float = 0.0


def main() -> None:
    """Evaluate once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", default="0.025,0.05,0.075,0.1,0.15,0.2")
    parser.add_argument("-n", type=int, default=360)
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--stride", type=int, default=runner.STRIDE["cuda"])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--attack", default="autoattack")
    parser.add_argument("--curve", default="fast")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(given.dataset, "test")
    data = data.subset(range(min(given.n, len(data))))
    runner.STRIDE["cpu"] = given.stride
    runner.WIDTH_STEP["cpu"], runner.EXACT["cpu"] = runner.WIDTH_STEP["cuda"], runner.EXACT["cuda"]
    parts = counted()
    result = evaluate(
        load_model(given.model, arch=given.arch, dataset=data),
        data,
        Settings(
            attack=given.attack.split(","), eps=given.eps.split(","), norm=given.norm, slots=given.slots, processes=1,
            precision=given.precision, curve=given.curve, probes=False,
            attack_settings={name: int(value) for name, _, value in (one.partition("=") for one in given.set)},
        ),
    )  # fmt: skip
    stand = ", ".join(f"{point.eps_text} {round(point.accuracy * len(data))}" for point in result.record.curve)
    print(f"{given.model}: {given.attack}, n {len(data)}, {given.slots} slots, stride {given.stride}; stand: {stand}")
    print(f"{'part':<22}{'searches':>9}{'slot-steps':>12}{'useful':>8}{'share':>8}{'of cost':>9}")
    total = Part(*(sum(getattr(part, name) for part in parts.values()) for name in vars(Part())))
    for name, part in [*sorted(parts.items(), key=lambda item: -item[1].rows), ("all", total)]:
        print(
            f"{name:<22}{part.searches:>9}{part.rows:>12,}{part.useful / max(part.rows, 1):>8.1%}"
            f"{part.rows / max(total.rows, 1):>8.1%}{part.passes / max(total.passes, 1):>9.1%}"
        )


def counted() -> dict[str, Part]:
    """What every evaluation from now on takes, by part."""
    parts: dict[str, Part] = defaultdict(Part)
    start, step, verify = Search.__init__, Search._step, Search._verify

    def part_of(search: Search) -> Part:
        in_bf16 = search.oracle.search.dtype is torch.bfloat16
        return parts[search.attack.name + ("" if in_bf16 else " in fp32")]

    def started(search: Search, *args: Any, **named: Any) -> None:
        start(search, *args, **named)
        part_of(search).searches += 1

    def stepped(search: Search, slots: Slots) -> Slots:
        part, oracle = part_of(search), search.oracle
        busy = search._busy & ~search.attack.done(slots.state) & ~slots.has_candidate
        part.rows += len(busy)
        part.useful += int(busy.sum())
        before = oracle.forwards + oracle.backwards
        made = step(search, slots)
        each = 1 if oracle.search.dtype is torch.bfloat16 else FP32_PASSES
        part.passes += each * (oracle.forwards + oracle.backwards - before)
        return made

    def verified(search: Search) -> None:
        part, before = parts[VERIFICATION], search.oracle.forwards
        part.useful += min(sum(map(len, search.unchecked)), search.oracle.slots)
        verify(search)
        part.rows += search.oracle.forwards - before
        part.passes += FP32_PASSES * (search.oracle.forwards - before)

    Search.__init__, Search._step, Search._verify = started, stepped, verified  # type: ignore[method-assign]
    return parts


if __name__ == "__main__":
    main()
