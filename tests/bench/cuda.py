"""AutoAttack on a GPU: ours beside pyautoattack on the same card, then ours on the whole test set.

    python tests/bench/cuda.py [--model SPEC] [--dataset NAME] [--eps EPS] [-n N] [--beside M] [--device cuda]
                               [--out FILE.md]

The first M images by both engines: seconds of attack, their ratio, and the images that one of them alone felled. Then
all N by ours: seconds, and the most memory that was held. Last APGD-CE alone on the M: the operations of its passes a
second, as a share of what this card's bf16 matrix product was measured to make. With --device cpu a rehearsal.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from training import matrix_rate

from advbench.checkpoint import Loaded, load_model
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.kernels import exact_kernels
from advbench.engine.search_copy import search_copy
from advbench.environment import environment
from advbench.eps import parse_eps
from advbench.evaluator import Evaluation, Settings, evaluate
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.journal import Journal
from advbench.evaluator.runner import Runner
from advbench.models.untouched import untouched

TITLE = """# AutoAttack on a GPU

Written by `make bench-cuda`: seconds are of attack alone, without start-up and data loading; one run, one card.
"""


def autoattack(model: Loaded, data: Dataset, eps: str, engine: str, device: torch.device) -> tuple[Evaluation, float]:
    """An evaluation, and the most memory (GiB) that PyTorch held on the card meanwhile."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    done = evaluate(model, data, Settings(eps=[eps], engine=engine, device=device, curve="exact"))
    return done, torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else 0.0


@dataclass(frozen=True)
class Rate:
    """Operations a second: of APGD's passes, and of a bf16 matrix product; `eager`, why steps were no graph."""

    reached: float
    matrix: float
    eager: str


def apgd_rate(model: Loaded, data: Dataset, eps: float, slots: int, device: torch.device) -> Rate:
    """APGD-CE in bf16 on all images that the model gets right."""
    net, data = model.net.to(device), data.to(device)
    (attack,), _ = resolve(["apgd-ce"], {}, norm="linf", classes=data.num_classes)
    with untouched(net), exact_kernels(device):
        journal = Journal()
        runner = Runner(net, data, norm="linf", seed=0, slots=slots, precision="bf16", journal=journal)
        rows = np.flatnonzero(runner.correct)
        runner.attack_at(attack, rows, np.full(len(rows), eps))
        each = operations(net, data)
    reached = (journal.backwards * sum(each) + (journal.forwards - journal.backwards) * each[0]) / journal.seconds
    return Rate(reached, matrix_rate(device), "; ".join(runner.eager))


def operations(net: torch.nn.Module, data: Dataset) -> tuple[float, float]:
    """Of a forward pass, and of what a gradient by the input adds to it: an image."""
    x, _ = data.batch(slice(0, 2))
    copy, _ = search_copy(net, example=x[:1])
    z = x.clone().requires_grad_()
    with FlopCounterMode(display=False) as forward:
        total = copy(z).sum()
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(total, z)
    return forward.get_total_flops() / len(x), backward.get_total_flops() / len(x)


def row(name: str, done: Evaluation, memory: float, ours: Evaluation | None = None) -> list[str]:
    """A line of the table."""
    record = done.record
    (point,) = record.curve
    ratio = f"{record.seconds / ours.record.seconds:.2f}" if ours else "1.00"
    return [
        name, str(point.n), f"{record.seconds:.1f}", ratio, f"{100 * point.accuracy:.2f}",
        f"{record.forwards / point.n:.0f}" if record.forwards else "", f"{memory:.1f}",
    ]  # fmt: skip


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pyautoattack:model_test")
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--beside", type=int, default=2_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("error: this measures on an NVIDIA GPU, and there is no CUDA device here; --device cpu rehearses it")
    data = load(given.dataset, "test")
    data = data.subset(range(min(given.n, len(data))))
    some = data.subset(range(min(given.beside, len(data))))
    model = load_model(given.model, arch=given.arch, dataset=data)

    evaluate(
        model, some.subset(range(min(64, len(some)))), Settings(eps=[given.eps], attack="pgd", device=device)
    )  # warm-up
    mine, memory = autoattack(model, some, given.eps, "own", device)
    theirs, their_memory = autoattack(model, some, given.eps, "reference", device)
    whole, whole_memory = autoattack(model, data, given.eps, "own", device)
    engine = mine.record.engine
    rate = apgd_rate(model, some, parse_eps(given.eps, "linf").value, engine.slots, device)

    head = ["engine", "images", "seconds", "time / ours", "robust %", "forwards an image", "GiB"]
    rows = [
        row(f"advbench, {engine.precision}", mine, memory),
        row(f"{theirs.record.engine.name} {theirs.record.engine.version}", theirs, their_memory, mine),
        row(f"advbench, {engine.precision}", whole, whole_memory, whole),
    ]
    alone = [int(np.sum((a.fates.fell >= 0) & (b.fates.fell < 0))) for a, b in ((mine, theirs), (theirs, mine))]
    here = environment(str(device))
    graphs = f"Steps were not CUDA graphs: {rate.eager}." if rate.eager else "Steps were CUDA graphs."
    lines = [
        f"{model.arch} on {data.name} ({given.model}), Linf eps {given.eps}, {engine.slots} slots; "
        f"{here['device_name']}, Python {here['python']}, torch {here['torch']}, advbench {here['advbench']}; "
        f"{date.today()}",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)),
        "",
        f"Felled by ours alone: {alone[0]}, by the reference alone: {alone[1]} of {len(some)}.",
        f"APGD-CE: {rate.reached / 1e12:.3g} of {rate.matrix / 1e12:.3g} TFLOP/s in bf16 matrix products: "
        f"{rate.reached / rate.matrix:.0%}.",
        *([graphs] if device.type == "cuda" else []),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(f"{TITLE}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
