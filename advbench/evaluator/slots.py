"""The number of slots, which is the number of rows of every pass: by a rule on a CPU, measured on a CUDA device.

Verdicts may depend on the number of slots, and a record's id covers it. On a CPU it therefore follows from the images
alone. On a CUDA device it is measured once for each architecture and shape, and cached in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import platformdirs
import torch
from torch import nn

from advbench import ranks, rng
from advbench.attacks.apgd import APGD
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Problem, State
from advbench.engine.cuda_graph import cuda_graph, graphed
from advbench.engine.kernels import out_of_memory
from advbench.engine.oracle import Oracle
from advbench.engine.search_copy import search_copy
from advbench.errors import UserError
from advbench.files import locked, write_atomic
from advbench.threat import around

CPU_SLOTS = 64
SMALL_SIDE = 28  # pixels: for images up to this size the fixed cost of a step counts more, so they get 4 x the slots
MIN_SLOTS = 8
MIN_CUDA_SLOTS, MAX_CUDA_SLOTS = 64, 4096  # between which the rate of a CUDA device is measured
MIN_GAIN = 1.1  # in images a second, for which the slots are doubled
WARM_UP_STEPS = 2
TIMED_SECONDS, TIMINGS = 0.2, 3  # a device takes that long to reach its clock; the best of so many timings counts


def choose_slots(net: nn.Module, data: Dataset, *, norm: str, precision: str) -> int:
    """The number of slots for `net` and `data`, a power of two from MIN_SLOTS up.

    It is at most what a process's share of the images fills, so that few slots are idle; on a CPU what half of the
    images fill, so that two processes have work, however many there are.
    """
    if data.device.type == "cuda":
        key = "|".join(
            (
                torch.cuda.get_device_name(data.device),
                f"torch {torch.__version__}",
                architecture_sha256(net),
                "x".join(map(str, data.shape)),
                norm,
                precision,
            )
        )
        most = cached(slots_file(), key, lambda: fastest(rate_of(net, data, norm=norm, precision=precision)))
        enough = -(-len(data) // ranks.world())
    else:
        most = CPU_SLOTS * (4 if max(data.shape[1:]) <= SMALL_SIDE else 1)
        enough = (len(data) + 1) // 2
    return min(most, max(MIN_SLOTS, 1 << (enough - 1).bit_length()))


def architecture_sha256(net: nn.Module) -> str:
    """A hash of the kinds of the modules and the shapes of the weights of `net`, by name, whatever the values are."""
    kinds = [(name, type(module).__qualname__) for name, module in net.named_modules()]
    shapes = [(name, list(weight.shape)) for name, weight in net.named_parameters()]
    return hashlib.sha256(json.dumps([kinds, shapes]).encode()).hexdigest()


def fastest(rate: Callable[[int], float]) -> int:
    """Double the slots for as long as `rate(slots)`, in images a second, gains and memory suffices.

    Returns half of the first count if that already runs out of memory. Other errors of `rate` are raised.
    """
    slots, best = MIN_CUDA_SLOTS, _measured(rate, MIN_CUDA_SLOTS)
    if best is None:
        return MIN_CUDA_SLOTS // 2
    while slots < MAX_CUDA_SLOTS:
        more = _measured(rate, 2 * slots)
        if more is None or more < MIN_GAIN * best:
            break
        slots, best = 2 * slots, more
    return slots


def _measured(rate: Callable[[int], float], slots: int) -> float | None:
    try:
        return rate(slots)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def rate_of(
    net: nn.Module, data: Dataset, *, norm: str, precision: str, clock: Callable[[], float] = time.perf_counter
) -> Callable[[int], float]:
    """A function from slots to images a second, in steps of APGD as an evaluation runs them: on CUDA as a graph.

    It first does what else takes memory in an evaluation: a pass of `net` itself and, in bf16, a gradient in fp32 as in
    the recheck.
    """
    example = data.batch(slice(0, 1))[0]
    plain, _ = search_copy(net, example=example)
    copy = search_copy(net, torch.bfloat16, example=example)[0] if precision == "bf16" else plain
    norm = norm if norm in APGD.norms else "linf"  # corruptions have no norm, and APGD has no form for l0
    attack = APGD(name="apgd-ce").for_model(norm, data.num_classes)

    def rate(slots: int) -> float:
        p = problem_of(data, slots, norm)
        oracle = Oracle(net, copy, slots=slots)
        oracle.logits(p.region.x)
        if copy is not plain:
            Oracle(net, plain, slots=slots).answer(attack, p, attack.start(p).query)
        step, _ = step_of(attack, oracle, p, graph=data.device.type == "cuda")
        return slots / seconds_of(step, data.device, clock)

    return rate


def problem_of(data: Dataset, slots: int, norm: str, eps: float = 0.1) -> Problem:
    """The problem of as many items as there are slots, one for each image of `data`, and again from the first on."""
    rows = torch.arange(slots, device=data.device) % len(data)
    x, y = data.batch(rows)
    sizes = torch.full(y.shape, eps, dtype=torch.float64, device=y.device)
    return Problem(around(norm, x, sizes), y, torch.full_like(y, -1), rng.keys(0, "slots", rows))


def step_of(attack: Attack, oracle: Oracle, p: Problem, *, graph: bool) -> tuple[Callable[[], None], str]:
    """A function that takes the next step of `attack` on `p` at each call, and why it is no CUDA graph, "" if it is.

    `graph`: whether it is to be one.
    """

    def step(state: State) -> State:
        for asks in attack.turn:
            state = attack.step(p, state, oracle.answer(attack, p, state.query, asks))
        return state

    state, replay, why_not = attack.start(p), None, "not asked for"
    if graph:
        recorded = graphed(step, state, cuda_graph)
        state, replay, why_not = recorded.live, recorded.replay, recorded.why_not

    def take() -> None:
        nonlocal state
        if replay is None:
            state = step(state)
        else:
            replay()  # in place: the state stays where the graph writes it

    return take, why_not


def seconds_of(step: Callable[[], None], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a call of `step`, the least of TIMINGS timings of at least TIMED_SECONDS each."""

    def timed(count: int) -> float:
        began = clock()
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    timed(WARM_UP_STEPS)
    count = 1
    while (first := timed(count)) < TIMED_SECONDS:
        count *= 2
    return min(first, *(timed(count) for _ in range(TIMINGS - 1))) / count


def slots_file() -> Path:
    """The file of measured slot counts: a JSON object by device, model, shape, norm and precision."""
    return platformdirs.user_cache_path("advbench") / "slots.json"


def cached(path: Path, key: str, measure: Callable[[], int]) -> int:
    """The number that `path` keeps under `key`, else the result of `measure`, which is then kept there if possible."""
    found = _read(path).get(key)
    if found is not None:
        return found
    made = measure()
    # Where the folder cannot be written, the next run measures again.
    with suppress(UserError), locked(path.with_suffix(".lock")):
        write_atomic(path, json.dumps({**_read(path), key: made}, indent=1, sort_keys=True) + "\n")
    return made


def _read(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except Exception:  # a missing or damaged file: the next measurement replaces it
        return {}
    numbers = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in numbers if type(value) is int and value > 0}
