"""Feature maps flattened in the order that channels-last tensors lie in memory: nothing is copied on the way.

A linear layer behind `flatten(1)` wants its inputs channel by channel. Maps in the channels-last layout are copied for
it, and their gradient comes back in the other layout, in which the ReLU before it reads two of them at different
strides: 7 % of a gradient pass of small_cnn_16_32_100 on a CPU, 3 to 4 % of LeNet5's. With the layer's columns in the
maps' own order flattening is a view, both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from advbench.engine.search_copy.pool_first import calls

_METHODS, _FUNCTIONS = ("flatten", "reshape", "view"), (torch.flatten, torch.reshape)


class FlatLinear(nn.Linear):
    """`linear`, which reads the flattened maps of `shape` (C, H, W), reading those maps (B, C, H, W) themselves."""

    def __init__(self, linear: nn.Linear, shape: Sequence[int]) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(linear))  # its settings and mode
        columns = linear.weight.detach().view(-1, *shape).permute(0, 2, 3, 1).flatten(1).contiguous()
        self._parameters = {"weight": nn.Parameter(columns, requires_grad=False), "bias": linear.bias}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1).flatten(1))


def flat_last(net: nn.Module, graph: fx.Graph, x: Tensor) -> fx.GraphModule | None:
    """`net` with each linear layer that alone reads flattened maps in this form; None where there is none.

    `graph` is a trace of `net`, and is changed; images `x` (B, C, H, W) tell the shapes. The other modules are those of
    `net` itself.
    """
    shapes = _Shapes(net, graph)
    shapes.run(x)  # type: ignore[no-untyped-call]
    modules: dict[str, Any] = dict(net.named_modules())
    called = [node.target for node in graph.nodes]
    changed: dict[str, FlatLinear] = {}
    for node in list(graph.nodes):
        flat = node.args[0] if node.args and calls(node, modules, (), (nn.Linear,)) else None
        if not isinstance(flat, fx.Node) or not _flattens(flat, modules) or len(flat.users) > 1:
            continue
        maps = flat.args[0] if flat.args else None
        if not isinstance(maps, fx.Node) or maps.op == "placeholder":  # images are not laid out by a layer before
            continue
        before, after = (shapes.of.get(value, ()) for value in (maps, flat))
        if len(before) != 4 or tuple(after) != (before[0], prod(before[1:])) or prod(before[2:]) == 1:
            continue
        name = str(node.target)
        if called.count(name) == 1:
            changed[name] = FlatLinear(modules[name], before[1:])
            node.update_arg(0, maps)
            graph.erase_node(flat)
    if not changed:
        return None
    graph.lint()
    quick = fx.GraphModule(net, graph)
    for name, layer in changed.items():
        parent, _, child = name.rpartition(".")
        setattr(quick.get_submodule(parent), child, layer)
    return quick


def _flattens(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether `node` only changes a shape."""
    if node.op == "call_method":
        return node.target in _METHODS
    return calls(node, modules, _FUNCTIONS, (nn.Flatten,))


class _Shapes(fx.Interpreter):
    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        super().__init__(net, graph=graph)
        self.of: dict[Any, Sequence[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.of[n] = value.shape
        return value
