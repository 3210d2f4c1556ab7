"""AutoAttack: ours, in its parts, and pyautoattack on the first of the same images."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from cuda_bench import Bench
from cuda_table import Cut, Found, Job, Left
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench import ranks
from advbench.data.dataset import Dataset
from advbench.engine.kernels import exact_kernels
from advbench.engine.verdicts import Work
from advbench.eps import parse_eps
from advbench.errors import Interrupted
from advbench.evaluator import Evaluation, Settings, evaluate
from advbench.evaluator.journal import Journal
from advbench.evaluator.slots import choose_slots


@dataclass
class Ours:
    """What our engine found, for the reference to be held against: whether each image fell, and seconds an image."""

    fell: NDArray[np.bool_] | None = None
    seconds: float = 0.0


def parts_of(name: str, work: Work, *, together: bool = False) -> Iterator[Found]:
    """A row for each part of the seconds of searches, and one for the slot-steps. `together`: of several processes."""
    whole, of = sum(work.seconds.values()), "the searches of all processes" if together else "the searches"
    for part, seconds in work.seconds.items():
        yield f"{name}: {part}", f"{seconds:.1f} s", f"{seconds / max(whole, 1e-9):.0%} of {of}"
    if work.useful_share is not None:
        yield f"{name}: useful slot-steps", f"{work.useful_share:.1%}", f"of {work.slot_steps:,.0f}"


def our_jobs(bench: Bench, ours: Ours) -> list[Job]:
    """The number of slots, and AutoAttack on the first images."""
    first = bench.data.subset(range(min(bench.sizes.ours, len(bench.data))))
    return [
        Job("slots", partial(_slots, bench, first)),
        Job(f"{len(first):,} images", partial(_ours, bench, first, ours)),
    ]


def whole_jobs(bench: Bench) -> list[Job]:
    """AutoAttack by ours on all images, which goes on where an earlier measurement in the folder was cut."""
    data = bench.data.subset(range(bench.sizes.whole))
    name = f"{bench.model.weights_sha256[:12]}-{bench.eps.replace('/', '_')}-{len(data)}-{ranks.world()}"
    journal = bench.folder / f"{name}.journal"
    return [Job(f"{len(data):,} images", partial(_ours, bench, data, Ours(), journal=journal))]


def _slots(bench: Bench, data: Dataset, left: Left) -> Iterator[Found]:
    began = time.perf_counter()
    with exact_kernels(bench.device):
        slots = ranks.first(lambda: choose_slots(bench.model.net, data, norm="linf", precision="bf16"))
    yield f"slots for {len(data):,} images", str(slots), f"chosen in {time.perf_counter() - began:.1f} s"


def _ours(bench: Bench, data: Dataset, ours: Ours, left: Left, journal: Any = None) -> Iterator[Found]:
    name = f"advbench, {len(data):,} images"
    if ranks.world() > 1:
        cards = min(ranks.world(), torch.cuda.device_count())
        name += f", {ranks.world()} processes on {f'{cards} devices' if cards > 1 else 'one device'}"
    resume = ranks.first(lambda: journal is not None and journal.exists())
    kept = Journal(journal, stop=lambda: left() < 0)
    settings = Settings(eps=[bench.eps], device=bench.device, curve="exact", processes=1, probes=False)
    done: list[Evaluation] = []

    def work() -> None:
        done.append(evaluate(bench.model, data, settings, journal=kept, resume=resume))

    try:
        held = bench.held(work)
    except Interrupted:
        own = len(data) / ranks.world()
        yield f"{name}: cut", f"{kept.seconds:.1f} s", f"{kept.forwards / own:.0f} forwards an image until then"
        yield from parts_of(name, kept.work)
        raise Cut("out of time" + ("; the next measurement goes on from here" if journal else "")) from None
    record = done[0].record
    (point,) = record.curve
    if not resume:
        ours.fell, ours.seconds = done[0].fates.fell >= 0, record.seconds / len(data)
    cost = f"{(record.forwards or 0) / len(data):.0f} forwards and {(record.backwards or 0) / len(data):.0f} backwards"
    how = f"{record.engine.precision}, {record.engine.slots} slots" + (", resumed" if resume else "")
    graphs = [flag.detail for flag in record.flags if flag.name == "eager"]
    forward, backward = bench.operations
    work_done = (record.forwards or 0) * forward + (record.backwards or 0) * backward
    facts = [f"{100 * point.accuracy:.2f} % robust", f"{cost} an image", how, held, *graphs]
    facts.insert(2, bench.share(work_done / ranks.world(), record.seconds))
    yield name, f"{record.seconds:.1f} s", ", ".join(fact for fact in facts if fact)
    yield from parts_of(name, kept.work, together=kept.merged)
    if ranks.rank() == 0:
        kept.finish()


class Timed(nn.Module):
    """`net`, which raises Cut once no seconds are left, and counts passes forward."""

    def __init__(self, net: nn.Module, left: Left) -> None:
        super().__init__()
        self.net, self.left, self.forwards = net, left, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.left() < 0:
            raise Cut("out of time")
        self.forwards += len(x)
        return self.net(x)  # type: ignore[no-any-return]


def reference_jobs(bench: Bench, ours: Ours, *, exact: bool) -> list[Job]:
    """pyautoattack, with PyTorch's default kernels or the exact ones in which verdicts are compared."""
    return [Job("pyautoattack", partial(_reference, bench, ours, exact))]


def _reference(bench: Bench, ours: Ours, exact: bool, left: Left) -> Iterator[Found]:
    """A first batch of few images, then one of as many as there is time for."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    kernels = "exact fp32" if exact else "PyTorch's default kernels (convolutions in TF32 on CUDA)"
    eps, few, most = parse_eps(bench.eps, "linf").value, *bench.sizes.reference
    fell: list[NDArray[np.bool_]] = []
    spent, count = 0.0, min(few, len(bench.data))
    while count:
        begin = sum(map(len, fell))
        x, y = bench.data.batch(slice(begin, begin + count))
        net = Timed(bench.model.net, left).eval()
        began = time.perf_counter()
        with exact_kernels(bench.device) if exact else nullcontext():
            adversary = AutoAttack(net, norm="Linf", eps=eps, seed=0, device=x.device, version="standard")
            try:
                found, _ = adversary.run_standard_evaluation(x, y, batch_size=len(x))
            except Cut:
                passes = f"{net.forwards / count:.0f} forwards an image until then"
                raise Cut(f"out of time in a batch of {count} images, {passes}") from None
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
        seconds = time.perf_counter() - began
        spent += seconds
        with exact_kernels(bench.device), torch.no_grad():
            fell.append((bench.model.net(found).argmax(1) != y).cpu().numpy())
        facts = [f"{100 * float(np.mean(~fell[-1])):.2f} % robust", f"{net.forwards / count:.0f} forwards an image"]
        if ours.fell is not None:
            mine = ours.fell[begin : begin + count]
            facts.append(f"{seconds / count / ours.seconds:.2f} times ours an image")
            facts.append(f"felled by ours alone {np.sum(mine & ~fell[-1])}, by it alone {np.sum(~mine & fell[-1])}")
        name = f"pyautoattack {metadata.version('pyautoattack')}, images {begin + 1} to {begin + count}"
        yield name, f"{seconds:.1f} s", ", ".join([*facts, kernels])
        done = begin + count
        count = min(most, len(bench.data)) - done if done == few else 0
        count = max(0, min(count, int(left() * done / spent)))
