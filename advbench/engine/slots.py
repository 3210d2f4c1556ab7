"""What the slots of a search hold, and what leaves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.engine.attack import Problem, State
from advbench.engine.tensors import mapped


@dataclass
class Slots:
    """What a step changes, a row a slot.

    `candidate` (S, C, H, W) is the point that counts once verified, `has_candidate` (S,) whether there is one,
    `best_size` (S,) its size where the nearest point is sought, which a nearer one must be under. `margin_to_beat` (S,)
    is the candidate's margin on the search copy; once one was refused, by how much the copy overstated its margin,
    which the next one must exceed.
    """

    problem: Problem
    state: State
    candidate: Tensor
    has_candidate: Tensor
    best_size: Tensor
    margin_to_beat: Tensor


@dataclass
class Hits:
    """Ended items with the points (m, C, H, W) found, and what to go on from where the model refuses them."""

    items: Tensor  # (m,) int64, on the CPU
    points: Tensor
    states: State
    margin_to_beat: Tensor

    def __len__(self) -> int:
        return len(self.items)


def copied(value: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A copy of `value` on `device`, even where it is there already."""
    return value.to(device, copy=True)


def kept(state: State) -> dict[str, Tensor]:
    """Copies of a state's tensors on the CPU, by field."""
    return vars(mapped(copied, state))
