"""A user's function as an attack: `attack(model, x, y, eps) -> x_adv`, named by `module:function`.

x (B, C, H, W) float32 in [0, 1], y (B,) int64, eps a float; x_adv must have the shape of x.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from advbench.engine.attack import prepared
from advbench.engine.whole_batch import WholeBatch
from advbench.registry import parameters


@dataclass(frozen=True, kw_only=True)
class Function(WholeBatch):
    """`source_sha256`, the hash of the function's source file, distinguishes its versions in records."""

    source_sha256: str = ""
    bound: Mapping[str, Any] = field(default_factory=dict)  # arguments that ENTRIES sets
    function: Callable[..., Any] | None = prepared()

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], bound: Mapping[str, Any] | None = None) -> Function:
        """The attack that calls `function`, with the keyword arguments `bound`."""
        return cls(name=name, function=function, bound=dict(bound or {}), source_sha256=_source(function))

    def needs_small_logits(self) -> bool:
        return False  # its loss is not known

    def points(self, net: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int) -> Tensor:
        assert self.function is not None
        return self.function(net, x, y, eps, **self.bound)  # type: ignore[no-any-return]

    @classmethod
    def setting_names(cls) -> list[str]:
        return []

    def settings(self) -> dict[str, Any]:
        return {"source_sha256": self.source_sha256, **self.bound}


def is_attack(maker: Callable[..., Any]) -> bool:
    """Whether `maker` is itself an attack: a function with exactly four required positional parameters."""
    if isinstance(maker, type):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters(maker).values() if p.kind in kinds and p.default is p.empty]
    return len(needed) == 4


def _source(function: Callable[..., Any]) -> str:
    """The SHA-256 of the file that defines `function`; empty without one, as in an interpreter."""
    while isinstance(function, partial):
        function = function.func
    defined = function if inspect.isroutine(function) else type(function)  # an object that can be called
    try:
        return hashlib.sha256(Path(inspect.getfile(defined)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""
