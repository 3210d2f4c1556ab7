"""A step as a CUDA graph: recorded once, then replayed on the same memory without Python or single kernel launches.

Follows PyTorch's guide to CUDA graphs: static inputs, a warm-up on a side stream, no synchronisation inside. If a step
cannot be recorded, or its replay gives other numbers, steps stay eager and the reason is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from advbench.engine.kernels import out_of_memory
from advbench.engine.tensors import mapped, tensors

L = TypeVar("L")
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs its argument to warm up, records it without running it, and returns a function that replays it."""
WARM_UP_RUNS = 2
MAX_DIFFERING_SHARE = 0.01  # of a tensor's elements: kernels may add in another order


@dataclass
class Recorded(Generic[L]):
    """A recorded step.

    `live`: the state to continue from, one step ahead of the one given. `replay` advances `live` in place by one step;
    it is None if there is no recording, and `why_not` says why. `runs`: how often the step's Python code has run.
    """

    live: L
    replay: Callable[[], None] | None
    why_not: str = ""
    runs: int = 0


def graphed(step: Callable[[L], L], live: L, capture: Capture) -> Recorded[L]:
    """Record `step`, a function from a dataclass of tensors to one of the same shapes, on a copy of `live`.

    Out-of-memory errors are raised. After any other error of the recording, steps stay eager.
    """
    static = mapped(torch.clone, live)
    places = {value.data_ptr() for value in tensors(static)}
    runs = 0

    def body() -> None:
        nonlocal runs
        runs += 1
        new = tensors(step(static))
        # A result may be another field's static tensor, which is about to be overwritten.
        apart = [
            one if one is old or one.data_ptr() not in places else one.clone()
            for old, one in zip(tensors(static), new, strict=True)
        ]
        _write(static, apart)

    eager = step(live)  # first, because the graph will hold memory of its own
    try:
        replay = capture(body)
    except Exception as error:  # the model's own code may raise anything in a capture
        if out_of_memory(error):
            raise
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"
        return Recorded(eager, None, why)
    _write(static, tensors(live))
    ran = runs + 1
    replay()
    if not _alike(static, eager):
        return Recorded(eager, None, "a replay of the step gives other numbers than the step")
    return Recorded(static, replay, runs=ran)


def cuda_graph(body: Callable[[], None]) -> Callable[[], None]:
    """The `Capture` of the current CUDA device.

    The last warm-up run forbids synchronisation. A step that waits for the device thus fails before the recording: a
    recording that fails half way would leave PyTorch's memory allocator in the middle of it.
    """
    before = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(before)
    try:
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS - 1):
                body()
            with no_waiting():
                body()
        before.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # On the stream of this device: by default all graphs of a process are recorded on one of the first device used.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            body()
    finally:
        torch.cuda.set_stream(before)  # a failed recording leaves its own stream current
    return graph.replay  # type: ignore[no-any-return]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, an operation that waits for the CUDA device raises RuntimeError."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _write(into: L, new: list[Tensor]) -> None:
    for old, one in zip(tensors(into), new, strict=True):
        if one is not old:
            old.copy_(one)


def _alike(one: L, other: L) -> bool:
    shares = [
        (~torch.isclose(a.double(), b.double(), rtol=1e-3, atol=1e-6, equal_nan=True)).double().mean()
        for a, b in zip(tensors(one), tensors(other), strict=True)
        if a.numel()
    ]
    return bool((torch.stack(shares) <= MAX_DIFFERING_SHARE).all())
