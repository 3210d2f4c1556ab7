"""A network as a list of operations that have bounds, found by tracing it.

The network is followed as float32 computes it: an operation gives what it would in exact arithmetic, and up to
`units` x 2^-24 of the magnitudes that it adds up. `units` is the number of terms of an output, whose order does not
matter (Jeannerod and Rump 2013), and at least 2 more, which cover the rounding of the bounds in float64.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from advbench.certify.relaxations import SIGMOID, TANH, Activation, MaxPool, relu, softplus
from advbench.errors import one_line

UNIT = 2.0**-24
EXAMPLES = 5  # images on which a trace is tried
AGREE = 1e-4  # of the largest logit
SIZE = 2**21  # values of the nodes of images that are taken at once
OTHER_LOGITS = "its trace gives other logits, as where outputs are random or depend on the batch"


class NoBound(Exception):
    """There are no bounds for this network. The message names the layer."""


@dataclass(frozen=True)
class Affine:
    """`f`, affine in its inputs (B, ...). `magnitude`: the sum of the absolute values of what f adds up, at most, for
    inputs of at most such absolute values. `transpose` of rows (B, ...): the product with the matrix of f; None for
    that by autograd."""

    f: Callable[..., Tensor]
    magnitude: Callable[..., Tensor]
    units: int = 2
    transpose: Callable[[Tensor], Tensor] | None = None

    def pull(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
        """`rows` (P, ...) times the matrix of f, for each of the inputs of `shapes`."""
        if self.transpose is not None:
            return (self.transpose(rows),)
        inputs = [rows.new_zeros(len(rows), *shape).requires_grad_() for shape in shapes]
        with torch.enable_grad():
            outputs = self.f(*inputs)
            return torch.autograd.grad(outputs, inputs, rows, create_graph=rows.requires_grad, materialize_grads=True)


@dataclass(frozen=True)
class Node:
    """An operation, the numbers of the nodes that it reads, and the shape of its output for one image."""

    name: str
    op: Affine | Activation | MaxPool | None  # None: the images
    inputs: tuple[int, ...]
    shape: torch.Size


@dataclass(frozen=True)
class Graph:
    """Nodes in an order of computation: the first is the image, the last the logits."""

    nodes: tuple[Node, ...]

    def values(self, x: Tensor) -> list[Tensor]:
        """The value (B, ...) of each node for images x (B, C, H, W) in float64, in exact arithmetic."""
        found = [x]
        for node in self.nodes[1:]:
            assert node.op is not None
            found.append(node.op.f(*(found[number] for number in node.inputs)))
        return found

    def agrees(self, net: nn.Module, x: Tensor, at_once: int = SIZE) -> bool:
        """Whether it gives the logits that `net` has for images x (B, C, H, W) in float32, up to rounding.

        `at_once`: values of the nodes; 1 takes one image after the other.
        """
        expected = net(x.clone()).double()  # which may write to its input
        found = torch.cat([self.values(some)[-1] for some in x.double().split(max(1, at_once // self.size))])
        return found.shape == expected.shape and bool(((found - expected).abs() <= AGREE * expected.abs().amax()).all())

    @property
    def logits(self) -> int:
        """The number of the last node."""
        return len(self.nodes) - 1

    @property
    def size(self) -> int:
        """How many values an image has in all nodes together."""
        return sum(node.shape.numel() for node in self.nodes)


def traced(net: nn.Module, x: Tensor) -> Graph:
    """The graph of `net`, in eval mode, on the device of example images x (B, C, H, W) in float32.

    Raises NoBound where the operations depend on the input, or one has no bound.
    """
    if any(value.dtype not in (torch.float32, torch.int64) for value in (*net.parameters(), *net.buffers())):
        raise NoBound("its weights are not float32")
    if reason := _changed(net):  # which a trace does not see
        raise NoBound(f"it {reason}")
    x = x[torch.arange(EXAMPLES, device=x.device) % len(x)]
    try:
        plain = copy.deepcopy(net).double().requires_grad_(False).eval()
        graph = _Tracer().trace(plain)
    except Exception as error:  # the model's own code may raise anything when given a proxy
        raise NoBound(f"it cannot be traced ({one_line(error)})") from error
    try:
        with torch.no_grad():
            made = _Reader(plain, graph, x.double()).graph()
            noisy = x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
            agree = made.agrees(net, noisy, at_once=1)  # since it mixes no images
    except NoBound:
        raise
    except Exception as error:  # such as an operation on a batch of another size, or with unusual arguments
        raise NoBound(f"its trace fails ({one_line(error)})") from error
    if not agree:
        raise NoBound(OTHER_LOGITS)
    return made


def _changed(module: nn.Module) -> str:
    """How a module does other than its class says; empty if it does not."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "has hooks"
    return "has a forward of its own" if "forward" in vars(module) else ""


class _Proxy(fx.Proxy):
    """One that shows what is done in place, which that of torch.fx takes for a new tensor."""

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, what: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", what, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Reader:
    """Goes through a trace. `known`: by node of the trace, a value that depends on no image, or a number of `nodes`.

    `memory`: of each node, the number of the one in whose memory its tensor may lie. `stale`: numbers of nodes whose
    memory was written to later, so that they have other values than the trace says.
    """

    def __init__(self, net: nn.Module, trace: fx.Graph, x: Tensor) -> None:
        self.net, self.trace, self.x = net, trace, x
        self.nodes: list[Node] = []
        self.examples: list[Tensor] = []
        self.known: dict[fx.Node, Any] = {}
        self.memory: list[int] = []
        self.stale: set[int] = set()

    def graph(self) -> Graph:
        for node in self.trace.nodes:
            if node.op == "placeholder":
                if self.nodes:
                    raise NoBound(f"it takes more than images: {node.name}")
                self.known[node] = self.add(Node("images", None, (), self.x.shape[1:]), self.x)
            elif node.op == "get_attr":
                self.known[node] = operator.attrgetter(str(node.target))(self.net)
            elif node.op == "output":
                return self.ended(node.args[0])
            else:
                self.known[node] = self.read(node)
        raise NoBound("it has no output")

    def ended(self, output: Any) -> Graph:
        last = self.known.get(output) if isinstance(output, fx.Node) else None
        if not isinstance(last, _Number) or len(self.nodes[last].shape) != 1:
            raise NoBound("its output is not one tensor of logits")
        if last in self.stale:
            raise NoBound("its logits are overwritten before it returns them")
        same = Affine(lambda z: z, lambda m: m)  # so that the logits come last
        self.add(Node("logits", same, (int(last),), self.nodes[last].shape), self.examples[last])
        return Graph(tuple(self.nodes))

    def add(self, node: Node, example: Tensor, shared: Sequence[int] = ()) -> _Number:
        """The number of a new node, whose tensor may lie in the memory of the first of the nodes `shared`."""
        self.nodes.append(node)
        self.examples.append(example)
        self.memory.append(self.memory[shared[0]] if shared else len(self.memory))
        return _Number(len(self.nodes) - 1)

    def read(self, node: fx.Node) -> Any:
        """The value of a node that depends on no image, as float32 computes it, or the number of a new one."""
        inputs: list[_Number] = []

        def collect(part: fx.Node) -> fx.Node:
            value = self.known[part]
            if isinstance(value, _Number) and value not in inputs:
                inputs.append(value)
            return part

        fx.map_arg((node.args, node.kwargs), collect)

        constant = not inputs
        if overwritten := self.stale.intersection(inputs):
            raise NoBound(f"{node.name} reads {self.nodes[min(overwritten)].name}, which was overwritten before")

        def run(*tensors: Tensor) -> Any:
            at = dict(zip(inputs, tensors, strict=True))

            def value(part: fx.Node) -> Any:
                known = self.known[part]
                if isinstance(known, _Number):
                    return at[known]
                return known.float() if constant and _is_double(known) else known

            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            target = self.net.get_submodule(str(node.target)) if node.op == "call_module" else node.target
            return target(*args, **kwargs)  # type: ignore[operator]

        given = [self.examples[number].clone() for number in inputs]
        try:
            example = run(*given)
        except Exception as error:  # in float64 and other shapes a model's code may raise anything
            raise NoBound(f"{node.name} fails in float64 ({one_line(error)})") from error
        if constant or isinstance(example, int | torch.Size | torch.dtype | torch.device):
            return example.double() if isinstance(example, Tensor) and example.dtype == torch.float32 else example
        if not isinstance(example, Tensor):
            raise NoBound(f"{node.name} gives a {type(example).__name__}")
        if example.is_complex():
            raise NoBound(f"{node.name} gives complex numbers")
        example = example.double()
        if example.dim() == 0 or len(example) != len(self.x):
            raise NoBound(f"{node.name} does not keep images apart")
        name, what = node.name, _target(node)
        if node.op == "call_module":
            name = str(node.target)
            module = self.net.get_submodule(name)
            what = type(module)
            if reason := _changed(module):
                raise NoBound(f"{name} {reason}")
        made = self.operation(node, what, run, inputs, example)
        if made is None:
            raise NoBound(f"{name} ({getattr(what, '__name__', what)}) has no bound")
        written = [number for number, one in zip(inputs, given, strict=True) if one._version]
        lost = {self.memory[number] for number in written}
        self.stale |= {number for number, memory in enumerate(self.memory) if memory in lost}
        shared = inputs if what in _SHARING else written
        return self.add(Node(name, made, tuple(map(int, inputs)), example.shape[1:]), example, shared)

    def operation(
        self, node: fx.Node, what: Any, run: Callable[..., Any], inputs: list[_Number], example: Tensor
    ) -> Affine | Activation | MaxPool | None:
        """What a node does, where it has a bound."""
        module = self.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        before = self.examples[inputs[0]]
        if what in _RESHAPES and example[0].numel() == before[0].numel():
            shape = example.shape[1:]
            return _plain(lambda x: x.reshape(len(x), *shape))
        if what in _SAME:
            return _plain(lambda x: x)
        if what in _AVERAGES:
            count = before[0].numel()  # a pooling window is no larger than a map, a mean has what it leaves out
            window = count // before.shape[1] if before.dim() == 4 else count
            return replace(_plain(run), units=max(window, count // example[0].numel()) + 2)
        if what in _PLAIN or (what is F.pad and not _argument(node, 3, "value")):
            return _plain(run)
        if what in _ARITHMETIC and not node.kwargs and len(node.args) <= 2:
            terms = [self.known[part] if isinstance(part, fx.Node) else part for part in node.args]
            return _arithmetic(_ARITHMETIC[what], terms, inputs)
        if isinstance(module, nn.Softplus):
            return softplus() if (module.beta, module.threshold) == (1, 20) else None
        if what is F.softplus:
            return softplus() if len(node.args) == 1 and not node.kwargs else None
        if what in _ACTIVATIONS:
            return _ACTIVATIONS[what]
        if what in (nn.LeakyReLU, F.leaky_relu):
            slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else _argument(node, 1, "negative_slope")
            slope = 0.01 if slope is None else float(slope)
            return relu(slope) if 0 <= slope < 1 else None
        if isinstance(module, nn.MaxPool2d) and what is nn.MaxPool2d:
            return _max_pool(module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        if what in (F.max_pool2d, torch.max_pool2d):
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            return _max_pool(*(_argument(node, place, name) for place, name in enumerate(names, start=1)))
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and what in _WEIGHTED:
            return _weighted(module, before.shape[1:])
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and what in _NORMS:
            return _batch_norm(module)
        return None


class _Number(int):
    """The number of a node."""


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _target(node: fx.Node) -> Any:
    return f".{node.target}" if node.op == "call_method" else node.target


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


_RESHAPES = {
    ".view", ".reshape", ".flatten", ".unflatten", ".squeeze", ".unsqueeze", nn.Flatten, nn.Unflatten, torch.flatten,
    torch.reshape, torch.squeeze, torch.unsqueeze,
}  # fmt: skip
_AVERAGES = {
    ".mean", torch.mean, ".sum", torch.sum, F.avg_pool2d, F.adaptive_avg_pool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
}  # fmt: skip
# Sums of some of the inputs, or these themselves.
_PLAIN = {
    ".permute", ".transpose", torch.cat, torch.permute, torch.transpose, operator.getitem, nn.ZeroPad2d,
}  # fmt: skip
_SAME = {
    ".contiguous", ".float", ".clone", ".detach", F.dropout, F.dropout2d, nn.Identity, nn.Dropout, nn.Dropout2d,
}  # fmt: skip
# Whose output may be a view of the input.
_SHARING = (_RESHAPES | _SAME | {".permute", ".transpose", torch.permute, torch.transpose, operator.getitem}) - {
    ".clone"
}
_ARITHMETIC = {
    operator.add: "+", operator.iadd: "+", torch.add: "+", ".add": "+", ".add_": "+", operator.sub: "-",
    operator.isub: "-", torch.sub: "-", ".sub": "-", operator.mul: "*", operator.imul: "*", torch.mul: "*",
    ".mul": "*", operator.truediv: "/", operator.itruediv: "/", torch.div: "/", ".div": "/", operator.neg: "-",
    torch.neg: "-", ".neg": "-",
}  # fmt: skip
_ACTIVATIONS = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, torch.relu_, ".relu", ".relu_"), relu()),
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid, ".sigmoid"), SIGMOID),
    **dict.fromkeys((nn.Tanh, F.tanh, torch.tanh, ".tanh"), TANH),
}
_WEIGHTED = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}


def _plain(f: Callable[..., Tensor]) -> Affine:
    """An operation of weights from 0 on, without a constant."""
    return Affine(f, f)


def _arithmetic(sign: str, terms: Sequence[Any], inputs: Sequence[_Number]) -> Affine | None:
    """A sum or difference of terms, or a product or quotient of a term and a constant."""

    def at(values: Sequence[Tensor]) -> list[Any]:
        return [values[inputs.index(term)] if isinstance(term, _Number) else term for term in terms]

    def sizes(values: Sequence[Tensor]) -> list[Any]:
        return [values[inputs.index(term)] if isinstance(term, _Number) else abs(term) for term in terms]

    if len(terms) == 1:
        return Affine(operator.neg, lambda m: m)
    second = isinstance(terms[1], _Number)
    if sign in "*/" and second and (sign == "/" or isinstance(terms[0], _Number)):
        return None
    f = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[sign]
    combined = operator.add if sign == "-" else f
    return Affine(lambda *x: f(*at(x)), lambda *m: combined(*sizes(m)), 5)  # a number and its inverse are rounded too


def _max_pool(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> MaxPool | None:
    if ceil_mode:
        return None
    kernel = _pair(kernel)
    return MaxPool(kernel, _pair(stride) if stride else kernel, _pair(padding or 0), _pair(dilation or 1))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _weighted(module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, shape: torch.Size) -> Affine:
    """A linear layer or convolution."""
    sizes = copy.deepcopy(module)
    for parameter in sizes.parameters():
        parameter.abs_()
    weight = module.weight
    terms = weight[0].numel() + 3
    if isinstance(module, nn.Linear):
        return Affine(module, sizes, terms, lambda rows: rows @ weight)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        settings = module.stride, module.padding, module.dilation, module.groups
        return Affine(
            module,
            sizes,
            terms,
            lambda rows: conv2d_input((len(rows), *shape), weight, rows, *settings),  # type: ignore[arg-type]
        )
    return Affine(module, sizes, terms)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> Affine | None:
    """A BatchNorm with running statistics: x a + (b - mean a), whichever way that is computed."""
    if module.running_mean is None or module.running_var is None:
        return None
    factor = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        factor = factor * module.weight
    constant = (module.running_mean * factor).abs()
    if module.bias is not None:
        constant = constant + module.bias.abs()

    def magnitude(m: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (m.dim() - 2))
        return m * factor.abs().view(shape) + constant.view(shape)

    return Affine(module, magnitude, 10)
