"""The contents of a search's slots, and the hits that leave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advbench.engine.attack import Problem, State
from advbench.engine.tensors import mapped


@dataclass
class Slots:
    """Everything a step changes, one row per slot.

    `candidate` (S, C, H, W): the point to verify; `has_candidate` (S,) bool: whether there is one; `best_size` (S,): in
    a search for the nearest adversarial example, the candidate's norm, which the next hit must be below.

    `margin_to_beat` (S,): the margin on the search copy that the next hit must exceed. It is -inf for a new item, the
    candidate's margin once there is one, and after a refusal the amount by which the copy overstated the margin. In a
    search for the nearest one it is -inf, and after a refusal the handicap of the oracle's answers.

    `attempt` (S, C, H, W): the query of the largest margin on the search copy, `attempt_margin` (S,), so far inside the
    ball; (S, 1), and -inf, where they are not kept.
    """

    problem: Problem
    state: State
    candidate: Tensor
    has_candidate: Tensor
    best_size: Tensor
    margin_to_beat: Tensor
    attempt: Tensor
    attempt_margin: Tensor


@dataclass
class Refused:
    """Items whose hits the model refused, and from where they continue."""

    items: Tensor  # (m,) int64, on the CPU
    states: State
    margin_to_beat: Tensor

    def __len__(self) -> int:
        return len(self.items)


@dataclass
class Hits(Refused):
    """Ended items with their hits `points` (m, C, H, W), which may yet be refused."""

    points: Tensor


def copied(value: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A copy of `value` on `device`, even if `value` is there already."""
    return value.to(device, copy=True)


def cpu_copies(state: State) -> dict[str, Tensor]:
    """Copies of a state's tensors on the CPU, by field."""
    return vars(mapped(copied, state))


def cpu_fields(of: Refused) -> dict[str, Any]:
    """CPU copies of what `of` holds, by field, as plain values."""
    return {name: cpu_copies(one) if isinstance(one, State) else copied(one) for name, one in vars(of).items()}
