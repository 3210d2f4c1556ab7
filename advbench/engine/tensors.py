"""Operations on the rows of dataclasses of tensors, whose tensors all have one row per item."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

D = TypeVar("D")


def surely_none(condition: Tensor) -> bool:
    """True if no row of `condition` (S,) holds. Always False on CUDA, where the check would wait for the device."""
    return condition.device.type == "cpu" and not bool(condition.any())


def rows(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the rows where `condition` (S,) holds, `old` in the others. On a CPU, `old` itself if no row holds."""
    if new.device.type != "cpu":
        return torch.where(condition.view(-1, *[1] * (new.dim() - 1)), new, old)
    at = condition.nonzero()[:, 0]  # cheap on CPUs, where torch.where is slow
    return old.index_copy(0, at, new.index_select(0, at)) if len(at) else old


def put(into: Any, at: Tensor, new: Any) -> None:
    """Write the rows of `new` into the rows `at` of `into`, in place; both are dataclasses of the same tensors."""
    for mine, theirs in zip(tensors(into), tensors(new), strict=True):
        mine[at] = theirs


def take(state: D, at: Tensor | slice) -> D:
    """The rows `at` of a dataclass of tensors: copies, or views for a slice."""
    return mapped(lambda value: value[at], state)


def join(states: Sequence[D]) -> D:
    """Several dataclasses of tensors concatenated along their rows."""
    columns = zip(*map(tensors, states), strict=True)
    joined = iter([torch.cat(column) for column in columns])
    return mapped(lambda _: next(joined), states[0])


def tensors(of: Any) -> list[Tensor]:
    """The tensors of a dataclass and of its nested dataclasses, in the order of the fields."""
    values = [getattr(of, f.name) for f in dataclasses.fields(of)]
    return [one for value in values for one in ([value] if isinstance(value, Tensor) else tensors(value))]


def mapped(change: Callable[[Tensor], Tensor], of: D) -> D:
    """A dataclass of tensors with `change` applied to each, in the order of the fields."""
    changes = {
        f.name: change(value) if isinstance(value := getattr(of, f.name), Tensor) else mapped(change, value)
        for f in dataclasses.fields(of)  # type: ignore[arg-type]
    }
    return dataclasses.replace(of, **changes)  # type: ignore[type-var]
