"""A faster twin of a network for searching adversarial inputs; what it finds is verified by the original."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from advbench.engine.search_copy.first_layer import NarrowConv2d
from advbench.engine.search_copy.pool_first import pool_first
from advbench.engine.search_copy.winograd import WinogradConv2d
from advbench.errors import UserError
from advbench.models.base import straight_through

# Largest difference of logits, relative to the largest logit, that folding may make in fp32.
TOLERANCE = 1e-4
# Sum of the differences of gradients, relative to their sum: a ReLU next to zero may be on in one of the two alone.
SLOPES = 1e-2
MAX_FILTER_BYTES = 2**30  # of all Winograd filters

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SearchCopy(nn.Module):
    """`net` behind a border: any float input in, logits in the input's dtype out."""

    def __init__(self, net: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype
        self.quick = net  # gives the logits of `net`
        self.straight = False  # whatever the input, `net` does the same
        self.layout = torch.contiguous_format
        self._packed: dict[torch.Size, Callable[[Tensor], Tensor] | None] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.straight and not torch.is_grad_enabled() and x.device.type == "cpu" and self.dtype is None:
            if x.shape not in self._packed:
                self._packed[x.shape] = prepacked(self.net, x)
            packed = self._packed[x.shape]
            if packed is not None:
                return packed(x.contiguous())
        logits: Tensor = self.quick(self._inner(x))
        return logits.to(x.dtype)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The penultimate layer (B, D) and the logits (B, K) that follow from it; of a Model of the zoo only."""
        z, logits = self.net.features_and_logits(self._inner(x))  # type: ignore[operator]
        return z.to(x.dtype), logits.to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate layer (B, D); of a Model of the zoo only."""
        return self.net.features(self._inner(x)).to(x.dtype)  # type: ignore[operator, no-any-return]

    def head(self, z: Tensor) -> Tensor:
        """The logits (B, K) that follow from `features`."""
        return self.net.head(self._inner(z)).to(z.dtype)  # type: ignore[operator, no-any-return]

    def in_layout(self, layout: torch.memory_format) -> None:
        """Keep weights and images in `layout`."""
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
    """A deep copy of `net` in eval mode, its parameters frozen, and notes on what was done to it.

    Each BatchNorm that follows a convolution is folded into it, where the traced graph shows that
    nothing else sees the value between the two; one that comes first (pre-activation) stays. The
    folded copy must agree with `net` on random images to TOLERANCE, else the copy is unfolded and a
    note says why. On a CPU first layers get the gradient of `first_layer`, wide 3x3 convolutions are those of
    `winograd`, and where a ReLU is max pooled, the pooling comes first. All of it is tried, forward and backward,
    before it is used. `example` (B, C, H, W) gives shape and device of the random images; a Model of the zoo knows its
    own. `dtype` (such as torch.bfloat16) is what the copy computes in. Its layout is `channels_last`, if `net` runs in
    it: by default everywhere but on CUDA in fp32, whose fast convolutions without TF32 want the other one. `net` stays
    as it is. Raises UserError when `net` cannot be copied.
    """
    frozen = _frozen(net)
    devices = {value.device for value in net.parameters() if value.device.type == "cuda"}
    if channels_last is None:
        channels_last = dtype is not None or not devices
    x = _images(frozen, example)
    with torch.random.fork_rng(devices=list(devices)):  # a random network must not move others' numbers
        plain, notes = _folded(frozen, example)
        if plain is frozen:
            plain = _frozen(net)  # what is changed below is not what it is compared with
        if dtype is not None:
            plain = plain.to(dtype)
        memory = MAX_FILTER_BYTES
        for name, module in _convs(plain):
            if NarrowConv2d.fits(module):
                _replace(plain, name, NarrowConv2d(module))
            elif WinogradConv2d.fits(module) and (size := WinogradConv2d.filter_bytes(module)) <= memory:
                _replace(plain, name, WinogradConv2d(module))
                memory -= size
        twin = SearchCopy(plain, dtype)
        graph = _trace(plain)
        twin.straight = graph is not None
        twin.quick = _rewritten(plain, graph, pool_first, x if x is None else x.to(dtype or x.dtype))
        for layout in (torch.channels_last, torch.contiguous_format) if channels_last else (torch.contiguous_format,):
            twin.in_layout(layout)
            fault = _fault(frozen, twin, x)
            if not fault:
                return twin.eval(), notes
            if layout is torch.channels_last:
                notes.append(f"not in the channels-last layout: the model does not run in it ({fault})")
    return SearchCopy(_frozen(net), dtype).to(dtype).eval(), [f"searched as it is: a faster copy fails ({fault})"]


def _fault(net: nn.Module, twin: SearchCopy, x: Tensor | None) -> str:
    """What `twin` does wrong at images x where `net` does well: an error, or in the same precision other logits or
    gradients. Empty if nothing, or where that cannot be told."""
    try:
        expected = None if x is None else _derived(net, x)
    except Exception:  # the model itself may do anything: who attacks it will see
        return ""
    if x is None or expected is None:
        return ""
    try:
        found = _derived(twin, x)
    except Exception as error:  # such as `view` on maps in another layout
        return f"{type(error).__name__}: {_line(error)}"
    if twin.dtype is None:
        tiny = torch.finfo(x.dtype).tiny
        (logits, slope), (their_logits, their_slope) = expected, found
        difference = float((logits - their_logits).abs().max() / logits.abs().max().clamp(min=tiny))
        if difference > TOLERANCE:  # no difference where there is no number
            return f"logits differ by {difference:.1e} of the largest"
        difference = float((slope - their_slope).abs().sum() / slope.abs().sum().clamp(min=tiny))
        if difference > SLOPES:
            return f"gradients differ by {difference:.1e}"
    return ""


def _folded(plain: nn.Module, example: Tensor | None) -> tuple[nn.Module, list[str]]:
    """A folded copy of `plain` if there is one to trust, else `plain`; and notes."""
    folded = _frozen(plain)
    try:
        count, left = _fold(folded)
    except Exception as error:  # fx raises whatever the model's own code meets when given a proxy
        return plain, [f"BatchNorm not folded: the model cannot be traced ({type(error).__name__}: {_line(error)})"]
    notes = [f"{left} BatchNorm kept: no convolution of their own comes before"] if left else []
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
    """The plain convolutions that another module can take the place of."""
    return [
        (name, module)
        for name, module in net.named_modules()
        if name and type(module) is nn.Conv2d and not _watched(module)
    ]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            hasattr(m, "straight_through")
            or isinstance(m, NarrowConv2d | WinogradConv2d)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _trace(net: nn.Module) -> fx.Graph | None:
    """What `net` does, None where that may depend on its input."""
    try:
        return _Tracer().trace(net)
    except Exception:  # fx raises whatever the model's own code meets when given a proxy
        return None


_Rewrite = Callable[[nn.Module, fx.Graph], fx.GraphModule | None]


def _rewritten(net: nn.Module, graph: fx.Graph | None, rewrite: _Rewrite, x: Tensor | None) -> nn.Module:
    """`net`, or what `rewrite` makes of it and `graph`, a trace of it, if logits and gradients at images x are equal.

    A trace takes what is random for constant, and loses where gradients are to stop, or to be others.
    """
    try:
        quick = None if graph is None or x is None else rewrite(net, graph)
        if quick is None or x is None:
            return net
        for through in (False, True):
            with straight_through(net) if through else nullcontext():
                for one, other in zip(_derived(net, x), _derived(quick, x), strict=True):
                    if not torch.equal(one, other):
                        return net
    except Exception:  # a model may do anything; it is the one that counts
        return net
    return quick


def _derived(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at x, and the gradient by x of a sum that weighs them all."""
    with torch.enable_grad():
        z = x.clone().requires_grad_()
        logits = net(z)
        (gradient,) = torch.autograd.grad(logits.float().square().sum(), z)
    return logits.detach(), gradient


def _fold(net: nn.Module) -> tuple[int, int]:
    """Fold in place; how many BatchNorms were folded, and how many stay."""
    graph = _Tracer().trace(net)
    modules = dict(net.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times: dict[int, int] = {}
    for node in calls:
        module = modules[str(node.target)]
        times[id(module)] = times.get(id(module), 0) + 1
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
            and times[id(conv)] == times[id(norm)] == 1
            and norm.running_var is not None
            and not _watched(conv)
            and not _watched(norm)
        ):
            _replace(net, str(source.target), fuse_conv_bn_eval(conv, norm))
            _replace(net, str(node.target), nn.Identity())
            count += 1
        else:
            left += 1
    return count, left


def _watched(module: nn.Module) -> bool:
    # Hooks may change what passes, and parametrisations what the weights are.
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


def _replace(net: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    for parameter in new.parameters():
        parameter.requires_grad_(False)
    setattr(net.get_submodule(parent), child, new)


class _Linear(nn.Linear):
    """`linear`, as it is: what a recording makes of the plain one rounds rows in odd places otherwise."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(linear))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            return super().forward(x)
        turned = self.weight.t()
        return torch.mm(x, turned) if self.bias is None else torch.addmm(self.bias, x, turned)


def prepacked(net: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Forward passes of `net` alone, for inputs of the shape of x: its weights laid out once as the CPU's kernels want
    them, which takes a half to a third of the time. What it does must not depend on its input. None where it has no
    convolution or quicker ones, or where its logits would differ by more than TOLERANCE, or by a row's place."""
    kinds = {type(module) for module in net.modules()}
    if WinogradConv2d in kinds or not any(issubclass(kind, _CONVS) for kind in kinds):
        return None
    twin = _frozen(net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for name, module in list(twin.named_modules()):
        if name and type(module) is nn.Linear and not _watched(module):
            _replace(twin, name, _Linear(module))
    z, other = torch.rand(2, *x.shape, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
            warnings.simplefilter("ignore")
            packed: Callable[[Tensor], Tensor] = torch.jit.optimize_for_inference(
                torch.jit.freeze(torch.jit.trace(twin, z, check_trace=False))
            )
            for _ in range(2):  # it settles on its kernels in the first runs
                packed(z)
            ours, theirs = packed(other), net(other)
            if not torch.equal(packed(other.roll(1, 0)), ours.roll(1, 0)):  # a row's place must not tell
                return None
    except Exception:  # whatever the model's own code, or a PyTorch without this compiler, meets
        return None
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
    return packed if difference <= TOLERANCE else None


def _frozen(net: nn.Module) -> nn.Module:
    try:
        twin = copy.deepcopy(net)
    except Exception as error:  # modules may hold anything
        raise UserError(f"the model cannot be copied: {type(error).__name__}: {_line(error)}") from error
    return twin.eval().requires_grad_(False)


def _difference(one: nn.Module, other: nn.Module, example: Tensor | None) -> float | None:
    """The largest difference of logits on 4 random images, relative to the largest logit (at least 1)."""
    x = _images(one, example)
    if x is None:
        return None
    with torch.no_grad():
        a, b = one(x), other(x)
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0))


def _images(net: nn.Module, example: Tensor | None) -> Tensor | None:
    """4 random images of the shape and on the device of `example`, or as a Model of the zoo has them; in the type that
    `net` computes in."""
    first = next(iter(net.parameters()), None)
    if example is not None:
        shape, device = tuple(example.shape[1:]), example.device
    elif first is not None and hasattr(net, "in_channels") and hasattr(net, "image_size"):
        side: Any = net.image_size
        shape, device = (int(net.in_channels), side, side), first.device  # type: ignore[arg-type]
    else:
        return None
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    return x.to(first.dtype) if first is not None and first.is_floating_point() else x


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
