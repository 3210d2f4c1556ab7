"""Dataclasses of tensors with a row an item: rows taken, written and put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

D = TypeVar("D")


def surely_none(condition: Tensor) -> bool:
    """Whether no row of `condition` (S,) holds, as far as a look is free: False on CUDA, which would have to wait."""
    return condition.device.type == "cpu" and not bool(condition.any())


def rows(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the rows where `condition` (S,) holds, else `old`: itself, not a copy, where none does."""
    if new.device.type != "cpu":
        return torch.where(condition.view(-1, *[1] * (new.dim() - 1)), new, old)
    at = condition.nonzero()[:, 0]  # a look, which is cheap on CPUs, where torch.where is slow
    return old.index_copy(0, at, new.index_select(0, at)) if len(at) else old


def put(into: Any, at: Tensor, new: Any) -> None:
    """Write the rows of the dataclass `new` into the rows `at` of `into`, tensor by tensor, in place."""
    for mine, theirs in zip(tensors(into), tensors(new), strict=True):
        mine[at] = theirs


def take(state: D, at: Tensor | slice) -> D:
    """The rows `at` of a dataclass of tensors: copied, or for a slice seen."""
    return mapped(lambda value: value[at], state)


def join(states: Sequence[D]) -> D:
    """The rows of several dataclasses of tensors, one after the other."""
    columns = zip(*map(tensors, states), strict=True)
    joined = iter([torch.cat(column) for column in columns])
    return mapped(lambda _: next(joined), states[0])


def tensors(of: Any) -> list[Tensor]:
    """The tensors of a dataclass and of the dataclasses in it, in the order of the fields."""
    values = [getattr(of, f.name) for f in dataclasses.fields(of)]
    return [one for value in values for one in ([value] if isinstance(value, Tensor) else tensors(value))]


def mapped(change: Callable[[Tensor], Tensor], of: D) -> D:
    """A dataclass of tensors, each of them changed, in the order of the fields."""
    changes = {
        f.name: change(value) if isinstance(value := getattr(of, f.name), Tensor) else mapped(change, value)
        for f in dataclasses.fields(of)  # type: ignore[arg-type]
    }
    return dataclasses.replace(of, **changes)  # type: ignore[type-var]
