"""What the slots of a search hold, and what leaves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.attacks.engine import Problem, State, mapped


@dataclass
class Live:
    """What a step changes, a row a slot: `candidate`, the point (S, C, H, W) that counts once verified; `found` (S,),
    whether there is one; `limit` (S,), the size that a nearer one must be under; `bar` (S,), the candidate's margin on
    the search copy. Once one was refused: by how much the copy overstated its margin, which the next one must exceed.
    """

    problem: Problem
    state: State
    candidate: Tensor
    found: Tensor
    limit: Tensor
    bar: Tensor


@dataclass
class Hits:
    """Ended items with the points (m, C, H, W) found; states and bars to go on from where they are refused."""

    items: Tensor  # (m,) int64, on the CPU
    points: Tensor
    states: State
    bar: Tensor

    def __len__(self) -> int:
        return len(self.items)


def copied(value: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A copy of `value` on `device`, even where it is there already."""
    return value.to(device, copy=True)


def kept(state: State) -> dict[str, Tensor]:
    """Copies of a state's tensors on the CPU, by field."""
    return vars(mapped(copied, state))
