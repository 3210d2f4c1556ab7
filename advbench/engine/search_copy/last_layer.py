"""The last layer of a copy in bf16, in float32: it costs little, and logits are not rounded to bf16.

bf16 has 8 significant bits, so that logits around 10 come in steps of 1/16. Smaller progress, as a random search makes
it, would be lost.
"""

from __future__ import annotations

from torch import Tensor, fx, nn
from torch.nn import functional as F


class Float32Linear(nn.Module):
    """`linear` with frozen weights and outputs (B, K) in float32, for inputs of any float dtype."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().float())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight, self.bias)


def last_call(graph: fx.Graph | None) -> str:
    """The name of the module whose outputs are those of the network that `graph` traces, if called once; else ""."""
    nodes = [] if graph is None else list(graph.nodes)
    targets = [node.target for node in nodes]
    for node in nodes:
        last = node.args[0] if node.op == "output" else None
        if (
            isinstance(last, fx.Node)
            and last.op == "call_module"
            and targets.count(last.target) == len(last.users) == 1
        ):
            return str(last.target)
    return ""
