"""The search copy: a faster twin of a network for the search; the network itself verifies its hits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from advbench.engine.compiled import Compiled
from advbench.engine.kernels import out_of_memory
from advbench.engine.search_copy.first_layer import NarrowConv2d
from advbench.engine.search_copy.last_layer import Float32Linear, last_call
from advbench.engine.search_copy.pool_first import pool_first
from advbench.engine.search_copy.winograd import WinogradConv2d
from advbench.models import sides
from advbench.models.base import straight_through

# Largest allowed difference of fp32 logits, relative to the largest logit.
TOLERANCE = 1e-4
# Largest allowed sum of gradient differences, relative to the sum of gradients. It is larger because a ReLU near zero
# may be active in only one of the two networks.
GRADIENT_TOLERANCE = 1e-2
MAX_PACKED = 4  # shapes, each with a copy of the weights
MAX_FILTER_BYTES = 2**30  # of all Winograd filters together

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SearchCopy(nn.Module):
    """`net`, which computes in `dtype`, behind an interface with inputs and outputs of any float dtype."""

    def __init__(self, net: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype
        self.quick = net  # `net` or a faster module with the same logits and gradients
        self.fault = ""  # why this is no faster copy, but the model as it is
        self.traceable = False  # whether `net` performs the same operations on every input
        self.layout = torch.contiguous_format
        self._packed: dict[torch.Size, Callable[[Tensor], Tensor] | None] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.traceable and not torch.is_grad_enabled() and x.device.type == "cpu" and self.dtype is None:
            if x.shape not in self._packed:
                while len(self._packed) >= MAX_PACKED:
                    self._packed.pop(next(iter(self._packed)))  # the oldest
                self._packed[x.shape] = prepacked(self.net, x)
            packed = self._packed[x.shape]
            if packed is not None:
                return packed(x.contiguous())
        logits: Tensor = self.quick(self._inner(x))
        return logits.to(x.dtype)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D), the penultimate layer's outputs, and logits (B, K), in one pass; only for a zoo's Model."""
        z, logits = self.net.features_and_logits(self._inner(x))  # type: ignore[operator]
        return z.to(x.dtype), logits.to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D), the penultimate layer's outputs; only for a zoo's Model."""
        return self.net.features(self._inner(x)).to(x.dtype)  # type: ignore[operator, no-any-return]

    def head(self, z: Tensor) -> Tensor:
        """Logits (B, K) of features z (B, D); only for a zoo's Model."""
        return self.net.head(self._inner(z)).to(z.dtype)  # type: ignore[operator, no-any-return]

    def compile_with(self, backend: str) -> Compiled | None:
        """Compile the passes for logits by torch.compile with `backend`, if they do the same on every input, else None.

        On CUDA this joins the elementwise work between convolutions, a third of a step of ResNet-18.
        """
        if self.traceable and not any(hasattr(module, "straight_through") for module in self.modules()):
            torch._dynamo.reset()  # it compiles few graphs a process, of which an earlier evaluation may have left none
            return Compiled(self.quick, backend, what="the search", any_batch=True)
        return None

    def in_layout(self, layout: torch.memory_format) -> None:
        """Store weights, and convert images, in memory layout `layout`."""
        self.layout = layout
        self.to(memory_format=layout)  # type: ignore[call-overload]

    def _inner(self, x: Tensor) -> Tensor:
        inner = x.to(dtype=self.dtype or x.dtype)
        return inner.contiguous(memory_format=self.layout) if inner.dim() == 4 else inner


def search_copy(
    net: nn.Module,
    dtype: torch.dtype | None = None,
    channels_last: bool | None = None,
    *,
    example: Tensor | None = None,
) -> tuple[SearchCopy, list[str]]:
    """A search copy of `net` in eval mode with frozen parameters, and notes on what was changed. `net` stays as it is.

    - BatchNorms are folded into the convolution before them, if the traced graph shows that nothing else reads the
      value between the two. A BatchNorm that comes first (pre-activation) stays.
    - On a CPU, first layers get the faster gradient of `first_layer`, and wide 3x3 convolutions become those of
      `winograd`.
    - A ReLU followed by max pooling is moved behind it (`pool_first`).

    Logits on random images must agree with those of `net` to TOLERANCE, and gradients to GRADIENT_TOLERANCE; otherwise
    the change is undone and a note says why. Forward and backward passes are both tried before the copy is used.

    `dtype`: what the copy computes in, such as torch.bfloat16; that of `net` by default. `channels_last`: the memory
    layout, if `net` runs in it; by default used everywhere but on CUDA in fp32, where the fast convolutions without
    TF32 need contiguous tensors. `example` (B, C, H, W): gives the shape and device of the random images; not needed
    for a zoo's Model. A model that cannot be copied is searched itself, but not in another `dtype`: that raises.
    """
    try:
        return _faster(net, dtype, channels_last, example)
    except Exception as error:  # a model from elsewhere may raise anything
        if dtype is not None or out_of_memory(error):
            raise
        twin = SearchCopy(net)
        twin.training, twin.fault = False, f"{type(error).__name__}: {_line(error)}"
        return twin, [f"searched itself: a copy fails ({twin.fault})"]


def _faster(
    net: nn.Module, dtype: torch.dtype | None, channels_last: bool | None, example: Tensor | None
) -> tuple[SearchCopy, list[str]]:
    """What `search_copy` returns. Raises anything where `net` cannot be copied."""
    frozen = _frozen(net)
    devices = {value.device for value in net.parameters() if value.device.type == "cuda"}
    if channels_last is None:
        channels_last = dtype is not None or not devices
    x = _images(frozen, example)
    with torch.random.fork_rng(devices=list(devices)):  # a random network must not advance the global generator
        plain, notes = _folded(frozen, example)
        if plain is frozen:
            plain = _frozen(net)  # the copy is changed below and `frozen` is its reference
        if dtype is not None:
            plain = plain.to(dtype)
            name = last_call(_trace(plain))
            last = plain.get_submodule(name)
            if name and type(last) is nn.Linear and not _has_hooks(last):
                _replace(plain, name, Float32Linear(last))
        memory = MAX_FILTER_BYTES
        for name, module in _convs(plain):
            if NarrowConv2d.fits(module):
                _replace(plain, name, NarrowConv2d(module))
            elif WinogradConv2d.fits(module) and (size := WinogradConv2d.filter_bytes(module)) <= memory:
                _replace(plain, name, WinogradConv2d(module))
                memory -= size
        twin = SearchCopy(plain, dtype)
        graph = _trace(plain)
        twin.traceable = graph is not None
        twin.quick = _rewritten(plain, graph, pool_first, x if x is None else x.to(dtype or x.dtype))
        for layout in (torch.channels_last, torch.contiguous_format) if channels_last else (torch.contiguous_format,):
            twin.in_layout(layout)
            fault = _fault(frozen, twin, x)
            if not fault:
                return twin.eval(), notes
            if layout is torch.channels_last:
                notes.append(f"not in the channels-last layout: the model does not run in it ({fault})")
    plain_twin = SearchCopy(_frozen(net), dtype).to(dtype).eval()
    plain_twin.fault = fault
    return plain_twin, [f"searched as it is: a faster copy fails ({fault})"]


def _fault(net: nn.Module, twin: SearchCopy, x: Tensor | None) -> str:
    """Why `twin` cannot replace `net`: it raises on images x, or differs in logits or gradients (same dtype only).

    Empty if there is no such fault, if there are no images, or if `net` itself raises on them.
    """
    try:
        expected = None if x is None else _logits_and_gradient(net, x)
    except Exception:  # a fault of the model itself, which the attack will meet
        return ""
    if x is None or expected is None:
        return ""
    try:
        found = _logits_and_gradient(twin, x)
    except Exception as error:  # such as `view` on maps in another layout
        return f"{type(error).__name__}: {_line(error)}"
    if twin.dtype is None:
        tiny = torch.finfo(x.dtype).tiny
        (logits, gradient), (twin_logits, twin_gradient) = expected, found
        difference = float((logits - twin_logits).abs().max() / logits.abs().max().clamp(min=tiny))
        if bool(logits.isfinite().all()) and not difference <= TOLERANCE:
            return f"logits differ by {difference:.1e} of the largest"
        difference = float((gradient - twin_gradient).abs().sum() / gradient.abs().sum().clamp(min=tiny))
        if bool(gradient.isfinite().all()) and not difference <= GRADIENT_TOLERANCE:
            return f"gradients differ by {difference:.1e}"
    return ""


def _folded(plain: nn.Module, example: Tensor | None) -> tuple[nn.Module, list[str]]:
    """A copy of `plain` with BatchNorms folded if its logits agree, otherwise `plain`; and notes."""
    folded = _frozen(plain)
    try:
        count, left = _fold(folded)
    except Exception as error:  # the model's own code may raise anything when given a proxy
        return plain, [f"BatchNorm not folded: the model cannot be traced ({type(error).__name__}: {_line(error)})"]
    notes = [f"{left} BatchNorm kept: not preceded by a convolution that nothing else reads"] if left else []
    if not count:
        return plain, notes
    difference = _difference(plain, folded, example)
    if difference is None:
        return plain, [*notes, "BatchNorm not folded: no example input to check the folded copy with"]
    if not difference <= TOLERANCE:
        return plain, [*notes, f"BatchNorm not folded: logits would differ by {difference:.1e} of the largest"]
    notes.append(f"{count} BatchNorm folded into convolutions: logits differ by {difference:.1e} of the largest")
    return folded, notes


def _convs(net: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Names and modules of the plain 2-D convolutions without hooks, which another module can replace."""
    return [
        (name, module)
        for name, module in net.named_modules()
        if name and type(module) is nn.Conv2d and not _has_hooks(module)
    ]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            hasattr(m, "straight_through")
            or isinstance(m, NarrowConv2d | WinogradConv2d)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _trace(net: nn.Module) -> fx.Graph | None:
    """A trace of `net`; None if its operations depend on the input."""
    try:
        return _Tracer().trace(net)
    except Exception:  # the model's own code may raise anything when given a proxy
        return None


_Rewrite = Callable[[nn.Module, fx.Graph], fx.GraphModule | None]


def _rewritten(net: nn.Module, graph: fx.Graph | None, rewrite: _Rewrite, x: Tensor | None) -> nn.Module:
    """`rewrite(net, graph)`, `graph` a trace of `net`, if its logits and gradients at images x equal those of `net`.

    Otherwise `net`. The check is needed because a trace turns random values into constants, and loses where gradients
    are stopped or replaced.
    """
    try:
        quick = None if graph is None or x is None else rewrite(net, graph)
        if quick is None or x is None:
            return net
        for through in (False, True):
            with straight_through(net) if through else nullcontext():
                for one, other in zip(_logits_and_gradient(net, x), _logits_and_gradient(quick, x), strict=True):
                    if not torch.equal(one, other):
                        return net
    except Exception:  # a model may raise anything; without a check there is no rewrite
        return net
    return quick


def _logits_and_gradient(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at x, and the gradient with respect to x of their sum of squares."""
    with torch.enable_grad():
        z = x.clone().requires_grad_()
        logits = net(z)
        if not logits.requires_grad:  # a model that stops gradients, such as one that rounds its input
            return logits, torch.zeros_like(z)
        total = logits.float().square().sum()
        (gradient,) = torch.autograd.grad(total, z, allow_unused=True, materialize_grads=True)
    return logits.detach(), gradient


def _fold(net: nn.Module) -> tuple[int, int]:
    """Fold BatchNorms in place. Returns the numbers of those folded and of those kept."""
    graph = _Tracer().trace(net)
    modules = dict(net.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    uses: dict[int, int] = {}
    for node in calls:
        module = modules[str(node.target)]
        uses[id(module)] = uses.get(id(module), 0) + 1
    count = left = 0
    for node in calls:
        norm = modules[str(node.target)]
        if not isinstance(norm, _NORMS):
            continue
        source = node.args[0] if node.args else None
        conv = modules.get(str(source.target)) if isinstance(source, fx.Node) and source.op == "call_module" else None
        if (
            isinstance(conv, _CONVS)
            and isinstance(source, fx.Node)
            and len(source.users) == 1
            and uses[id(conv)] == uses[id(norm)] == 1
            and norm.running_var is not None
            and not _has_hooks(conv)
            and not _has_hooks(norm)
        ):
            _replace(net, str(source.target), fuse_conv_bn_eval(conv, norm))
            _replace(net, str(node.target), nn.Identity())
            count += 1
        else:
            left += 1
    return count, left


def _has_hooks(module: nn.Module) -> bool:
    # Hooks may change inputs and outputs, parametrisations the weights.
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


def _replace(net: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    for parameter in new.parameters():
        parameter.requires_grad_(False)
    setattr(net.get_submodule(parent), child, new)


class _Linear(nn.Linear):
    """`linear` as an explicit matrix product. With nn.Linear, a recording rounds a row depending on its place."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(linear))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            return super().forward(x)
        transposed = self.weight.t()
        return torch.mm(x, transposed) if self.bias is None else torch.addmm(self.bias, x, transposed)


def prepacked(net: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Faster forward passes of `net` on a CPU for inputs of the shape of x, without gradients.

    The weights are laid out once as the CPU's kernels need them, which cuts the time to a half or a third. The
    operations of `net` must not depend on its input. None if `net` has no convolution, has faster ones (`winograd`) or
    cannot be recorded, if logits would differ by more than TOLERANCE, or if a row's logits would depend on its place in
    the batch.
    """
    kinds = {type(module) for module in net.modules()}
    if WinogradConv2d in kinds or not any(issubclass(kind, _CONVS) for kind in kinds):
        return None
    twin = _frozen(net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for name, module in list(twin.named_modules()):
        if name and type(module) is nn.Linear and not _has_hooks(module):
            _replace(twin, name, _Linear(module))
    z, other = torch.rand(2, *x.shape, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
            warnings.simplefilter("ignore")
            packed: Callable[[Tensor], Tensor] = torch.jit.optimize_for_inference(
                torch.jit.freeze(torch.jit.trace(twin, z, check_trace=False))
            )
            for _ in range(2):  # the first runs choose the kernels
                packed(z)
            ours, theirs = packed(other), net(other)
            if not torch.equal(packed(other.roll(1, 0)), ours.roll(1, 0)):  # logits depend on a row's place
                return None
    except Exception:  # raised by the model's own code, or by a PyTorch without this compiler
        return None
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
    return packed if difference <= TOLERANCE else None


def _frozen(net: nn.Module) -> nn.Module:
    with torch.no_grad():  # under which TorchScript's parameters are copied without their history
        twin = copy.deepcopy(net).eval()
    for parameter in twin.parameters():  # TorchScript has no `requires_grad_`
        parameter.requires_grad_(False)
    return twin


def _difference(one: nn.Module, other: nn.Module, example: Tensor | None) -> float | None:
    """The largest difference of logits on 4 random images, relative to the largest logit (at least 1)."""
    x = _images(one, example)
    if x is None:
        return None
    with torch.no_grad():
        a, b = one(x), other(x)
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0))


def _images(net: nn.Module, example: Tensor | None) -> Tensor | None:
    """4 random images in the dtype of `net`, with the shape and device of `example`, or else those of a zoo's Model.

    None if neither is known.
    """
    first = next(iter(net.parameters()), None)
    if example is not None:
        shape, device = tuple(example.shape[1:]), example.device
    elif first is not None and hasattr(net, "in_channels") and hasattr(net, "image_size"):
        side: Any = net.image_size
        shape, device = (int(net.in_channels), *sides(side)), first.device  # type: ignore[arg-type]
    else:
        return None
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    return x.to(first.dtype) if first is not None and first.is_floating_point() else x


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
