"""Widths at which a network rounds as at its whole number of slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advbench.engine.rounding import Widths

SHAPE = (1, 2, 2)


class Rowwise(nn.Module):
    """Logits (B, 4) that round alike in any batch, plus `more` of the batch's size; the sizes seen are in `seen`."""

    def __init__(self, more: Callable[[int], float] = lambda rows: 0.0) -> None:
        super().__init__()
        self.more, self.seen = more, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return 2 * x.flatten(1) + self.more(len(x))


def fixed_batch(rows: int) -> float:
    if rows != 16:
        raise RuntimeError("this model takes 16 images")
    return 0.0


def test_a_width_is_tried_once_by_each_kind_of_pass() -> None:
    net = Rowwise()
    known = Widths(net, SHAPE, slots=16)
    assert known.alike(8, ("gradient",)) and known.alike(8, ("gradient",)) and known.alike(4, ("jacobian",))
    assert net.seen == [16, 8, 4]
    assert known.alike(8, ("gradient", "logits")) and net.seen == [16, 8, 4, 16, 8]


@pytest.mark.parametrize("more", [lambda rows: 2.0**-20 * (rows == 8), fixed_batch, lambda rows: torch.rand(1).item()])
def test_widths_at_which_a_network_differs_or_fails_are_left_out(more: Callable[[int], float]) -> None:
    state = torch.get_rng_state()
    assert not Widths(Rowwise(more), SHAPE, slots=16).alike(8, ("logits",))
    assert torch.equal(torch.get_rng_state(), state)
