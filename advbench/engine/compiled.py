"""torch.compile of a network's forward pass, in training and in a search, with a fallback where it fails.

In training there are two graphs for each mode: updates need gradients of the weights, attacks do not, and a compiled
backward pass computes every gradient that its forward pass was traced for. Each graph is tried before it is used:
compilers fail in the forward pass, in the backward pass, and where their code first runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

from advbench.engine.kernels import out_of_memory

MAX_DIFFERENCE = 0.1  # between compiled and plain outputs or gradients, as a share of their norm; bf16 rounds by 1 %


class Counter(Protocol):
    """Counts passes: of compiled code, whose layers call no hooks, by `add(out)`; none while it is `paused`."""

    def add(self, out: Tensor) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...


class Compiled:
    """Compiles the calls of `net` with `backend` (inductor, aot_eager), until that fails: `reason` then says why.

    `what` goes on without it then. `counter` is told of every pass of compiled code. `any_batch`: a graph serves
    batches of every size. `calls` and `served`: how many calls there were, and how many of them ran compiled code.
    Copies of the net, its state dict, and its `features` and `head` are not affected.
    """

    def __init__(
        self, net: nn.Module, backend: str, counter: Counter | None = None, *, what: str, any_batch: bool = False
    ) -> None:
        self.net = net
        self.backend = backend
        self.counter = counter
        self.what, self.any_batch = what, any_batch
        self.reason = ""
        self.calls = self.served = 0
        self._graphs_run = 0
        self._tried: set[tuple[Any, ...]] = set()
        self.compile_with(lookup_backend(backend))
        net._compiled_call_impl = self  # as nn.Module.compile does, which can neither count nor fall back

    def compile_with(self, backend: Callable[..., Callable[..., Any]]) -> None:
        """Compile by `backend`, a function of a graph and its inputs, and count how often its graphs run."""

        def counting(graph: Any, inputs: Any, **options: Any) -> Callable[..., Any]:
            made = backend(graph, inputs, **options)

            def run(*args: Any) -> Any:
                self._graphs_run += 1
                return made(*args)

            return run

        self.call = torch.compile(self.net._call_impl, backend=counting, dynamic=None if self.any_batch else False)

    def __call__(self, *args: Any) -> Tensor:
        key = self._mode(args)
        if key not in self._tried:
            self._tried.add(key)
            self.reason = self._failure(args)
            if self.reason:
                warnings.warn(f"{self.what} continues without torch.compile: {self.reason}", stacklevel=2)
                self.net._compiled_call_impl = None
                return self.net(*args)  # type: ignore[no-any-return]
        before = self._graphs_run
        out: Tensor = self.call(*args)
        self.calls += 1
        if self._graphs_run > before:  # else torch.compile gave up silently, and the plain pass was counted by its hook
            self.served += 1
            if self.counter is not None:
                self.counter.add(out)
        return out

    @property
    def status(self) -> str:
        """For the run card: the backend, with the share of calls that it served if not all; or "off" and why."""
        if self.reason:
            return f"off ({self.reason})"
        return (
            self.backend if self.served == self.calls else f"{self.backend} ({self.served / self.calls:.0%} of calls)"
        )

    def _mode(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What decides which graph runs."""
        shapes = tuple((tuple(one.shape[self.any_batch :]), one.dtype, one.requires_grad) for one in args)
        weights = frozenset((weight.requires_grad, weight.dtype) for weight in self.net.parameters())
        modes = tuple(module.training for module in self.net.modules())
        return shapes, weights, modes, torch.is_grad_enabled(), torch.is_autocast_enabled(args[0].device.type)

    def _failure(self, args: tuple[Any, ...]) -> str:
        """Why the compiled call and its backward pass do not do what the plain ones do; "" if they do.

        The net's buffers and the random generators are as before afterwards. Raises out-of-memory errors.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.net.buffers()]
        device = args[0].device
        try:
            paused = nullcontext() if self.counter is None else self.counter.paused()
            with torch.random.fork_rng([device] if device.type == "cuda" else []), paused:
                plain, redrawn = (self._results(self._plain, args, seed) for seed in (0, 1))
                compiled = self._results(self.call, args, 0)
        except Exception as error:  # compilers and their run time may raise anything
            if out_of_memory(error):
                raise
            return " ".join(str(error).strip().partition("\n\n")[0].split())[:200] or type(error).__name__
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
        away = _away(plain, compiled)
        allowed = (
            max(MAX_DIFFERENCE, 2 * own) for own in _away(plain, redrawn)
        )  # compiled dropout draws other numbers
        if any(not difference <= most for difference, most in zip(away, allowed, strict=True)):
            return f"compiled outputs or gradients differ from plain ones by {max(away):.0%}"
        return ""

    def _plain(self, *args: Any) -> Tensor:
        self.net._compiled_call_impl = None
        try:
            return self.net(*args)  # type: ignore[no-any-return]
        finally:
            self.net._compiled_call_impl = self

    def _results(self, call: Callable[..., Tensor], args: tuple[Any, ...], seed: int) -> list[Tensor]:
        """The outputs of `call`, and all gradients of a weighted sum of them as one vector, in float32."""
        torch.manual_seed(seed)
        given = [one.detach().requires_grad_(one.requires_grad) for one in args]
        out = call(*given)
        if not out.requires_grad:
            return [out.float()]
        wanted = [one for one in (*given, *self.net.parameters()) if one.requires_grad]
        weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
        found = torch.autograd.grad((weights * out.float()).sum(), wanted, allow_unused=True, materialize_grads=True)
        return [out.detach().float(), torch.cat([one.float().flatten() for one in found])]


def _away(one: list[Tensor], other: list[Tensor]) -> list[float]:
    """The norm of the difference of each pair of tensors, as a share of that of `one`."""
    return [float((b - a).norm() / a.norm().clamp_min(1e-12)) for a, b in zip(one, other, strict=True)]
