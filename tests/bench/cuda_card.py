"""What the card does at most, and which attacks it runs as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import torch
from cuda_bench import DTYPES, Bench, matrix_rate
from cuda_host import CLASSES, Enough, linear_samples
from cuda_table import Cut, Found, Job, Left

from advbench.engine.cuda_graph import Capture, cuda_graph
from advbench.engine.kernels import exact_kernels
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.engine.whole_batch import WholeBatch
from advbench.errors import one_line
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.slots import seconds_of
from advbench.registry import entries

SLOTS = 64  # of the model on which steps are recorded


def jobs(bench: Bench) -> list[Job]:
    """The rate of a matrix product, whether each attack is a graph, and other rates."""
    rate, *others = [Job(f"matrix product, {kind}", partial(_matrix, bench, kind)) for kind in DTYPES]
    return [rate, Job("graphs", partial(_graphs, bench)), Job("copy", partial(_copy, bench)), *others]


def _matrix(bench: Bench, kind: str, left: Left) -> Iterator[Found]:
    rate = bench.matrix_rate if kind == "bf16" else matrix_rate(bench.device, kind)
    yield f"matrix product, {kind}", f"{rate / 1e12:.3g} TFLOP/s", ""


def _copy(bench: Bench, left: Left) -> Iterator[Found]:
    size = 2**30 if bench.device.type == "cuda" else 2**26
    one = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(one)
    rate = 2 * size / seconds_of(lambda: other.copy_(one), bench.device)
    yield f"copy of {size >> 20} MiB", f"{rate / 1e9:.3g} GB/s", "read and written"


def as_itself(body: Callable[[], None]) -> Callable[[], None]:
    """In the place of a recording where there is no card: the step itself."""
    return body


def _graphs(bench: Bench, left: Left) -> Iterator[Found]:
    """Rows for the attacks whose steps are no graphs, and one with the number of those whose steps are."""
    capture = cuda_graph if bench.device.type == "cuda" else as_itself
    graphs, every = [], sorted(entries("attacks"))
    for number, name in enumerate(every):
        if left() < 0:
            raise Cut(f"out of time after {number} of {len(every)} attacks")
        try:
            reason = why_no_graph(name, capture, bench.device)
        except Exception as error:  # it needs another model, tasks or code: it says so
            yield f"step of {name}", "not tried", one_line(error)
            continue
        if reason:
            yield f"step of {name}", "no graph", reason
        else:
            graphs.append(name)
    yield "steps that are graphs", f"{len(graphs)} of {len(every)} attacks", ", ".join(graphs)


def why_no_graph(name: str, capture: Capture, device: torch.device) -> str:
    """Why a step of the attack `name`, or of a member of that set, is no graph on a linear model; "" if it is one."""
    maker = entries("attacks")[name].load()
    norms = getattr(maker, "norms", ("linf",))
    norm = "linf" if "linf" in norms else norms[0]
    attacks, _ = resolve([name], {}, norm=norm, classes=CLASSES)
    if any(isinstance(one, WholeBatch) for one in attacks):
        raise ValueError("it attacks whole batches, step by step")
    net, samples = linear_samples(SLOTS, device)

    def stop(_: Search) -> None:
        raise Enough

    for attack in attacks:
        search = Search(attack, samples, Oracle(net, slots=SLOTS), norm=norm, seed=0, stride=2, capture=capture)
        with suppress(Enough), exact_kernels(device):
            search.run(stop)
        if search.eager:
            return f"{attack.name}: {search.eager}" if len(attacks) > 1 else search.eager
    return ""
