"""A user's function as an attack: `attack(model, x, y, eps) -> x_adv`, named by `module:function`.

x (B, C, H, W) float32 in [0, 1], y (B,) int64, eps a float; x_adv must have the shape of x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from advbench.attacks.peers import held
from advbench.checkpoint import maker_sha256
from advbench.engine.attack import prepared
from advbench.engine.whole_batch import WholeBatch
from advbench.registry import required


@dataclass(frozen=True, kw_only=True)
class Function(WholeBatch):
    """`code`, the hash of the function's source files, distinguishes its versions in records; "" in an interpreter.
    What a partial function or an object holds is among its settings."""

    code: str = ""
    bound: Mapping[str, Any] = field(default_factory=dict)  # arguments that ENTRIES sets
    function: Callable[..., Any] | None = prepared()

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], bound: Mapping[str, Any] | None = None) -> Function:
        """The attack that calls `function`, with the keyword arguments `bound`."""
        return cls(name=name, function=function, bound=dict(bound or {}), code=maker_sha256(function) or "")

    def points(self, net: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int) -> Tensor:
        assert self.function is not None
        return self.function(net, x, y, eps, **self.bound)  # type: ignore[no-any-return]

    def settings(self) -> dict[str, Any]:
        return {"code_sha256": self.code, **held(self.function), **self.bound}


def is_attack(maker: Callable[..., Any]) -> bool:
    """Whether `maker` is itself an attack: a function with exactly four required positional parameters."""
    return not isinstance(maker, type) and len(required(maker)) == 4
