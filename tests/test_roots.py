"""The roots of the two sums of projections, against float64: by bisection, and by their own definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advbench.roots import falling, rising

ROWS = 6
seeds = st.integers(0, 10**6)


def drawn(seed: int, size: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two tensors (6, size) >= 0 over some orders of magnitude, with ties and zeros, and shares (6, 1) of (0, 1)."""
    draw = torch.Generator().manual_seed(seed)
    one, other = ((spread * torch.randn(ROWS, size, generator=draw)).exp() for _ in range(2))
    one[:, ::3] = one[:, :1].clone()
    other[0, ::4] = 0
    one[1, 1::4] = 0
    return one, other, torch.rand(ROWS, 1, generator=draw) * 0.98 + 0.01


@given(seeds, st.sampled_from([1, 2, 5, 40]), st.sampled_from([0.3, 1.5]))
def test_the_rising_sum_reaches_its_level(seed: int, size: int, spread: float) -> None:
    pace, full, share = drawn(seed, size, spread)
    total = full.double().masked_fill(pace == 0, 0).sum(1, keepdim=True)
    level = (share * total).float()
    until = full / pace.clamp_min(1e-30)
    t = rising(
        torch.stack([full, pace]), until, level, size + 1
    ).double()  # each round passes an element or is the last
    reached = torch.minimum(pace.double() * t, full.double()).sum(1, keepdim=True)
    assert torch.allclose(reached, level.double(), rtol=1e-5)


@given(seeds, st.sampled_from([5, 40]))
def test_too_few_rounds_stay_below_the_level_and_each_climbs(seed: int, size: int) -> None:
    pace, full, share = drawn(seed, size, 1.5)
    level = share * full.masked_fill(pace == 0, 0).sum(1, keepdim=True)
    before = torch.zeros(ROWS, 1)
    for rounds in range(5):
        t = rising(torch.stack([full, pace]), full / pace.clamp_min(1e-30), level, rounds)
        reached = torch.minimum(pace.double() * t, full.double()).sum(1, keepdim=True)
        assert (t >= before).all() and (reached <= level * (1 + 1e-5)).all()
        before = t


@pytest.mark.parametrize("level", [3.0, 3.5, torch.inf])
def test_a_level_out_of_reach_leaves_no_element_short(level: float) -> None:
    """The sum is 3 at most. A level of 3 is reached with the last element, and rounding must not begin anew."""
    pace, full = torch.tensor([[0.3, 7.0, 1e-3]]), torch.tensor([[1.0, 1.5, 0.5]])
    t = rising(torch.stack([full, pace]), full / pace, torch.tensor([[level]]), 5)
    assert t >= 500 * (1 - 1e-5)


def test_a_sum_of_nothing_has_a_root() -> None:
    nothing = torch.zeros(2, 1, 4)
    assert rising(nothing, torch.full((1, 4), torch.nan), torch.zeros(1, 1), 5) == 0  # as of a projection of x itself
    assert rising(nothing, torch.zeros(1, 4), torch.ones(1, 1), 5) > 1e30


@pytest.mark.parametrize("bits", [1, 2, 4])
@given(seed=seeds, size=st.sampled_from([1, 2, 5, 40]), spread=st.sampled_from([0.3, 1.5]))
def test_the_falling_sum_comes_down_to_its_level(bits: int, seed: int, size: int, spread: float) -> None:
    a, most, share = drawn(seed, size, spread)

    def total(shift: Tensor) -> Tensor:
        return torch.minimum((a.double() - shift).clamp_min(0), most.double()).sum(1, keepdim=True)

    level = share * total(torch.zeros(ROWS, 1)).float()
    shift = falling(a, most, level, bits).double()
    low, high = torch.zeros(ROWS, 1, dtype=torch.float64), a.double().amax(1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        above = total(middle) > level
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    # Float32 numbers near the largest a are 6e-8 of it apart, and no shift is better than the next one.
    apart = 4e-7 * a.amax(1, keepdim=True)
    assert ((shift - high).abs() <= apart + 1e-5 * level).all()


@pytest.mark.parametrize("bits", [1, 2])
def test_one_far_element_costs_the_others_no_precision(bits: int) -> None:
    """A part of 2^-24 of 1000 is 6e-5, and a shift that is off by it moves 4,000 elements by 0.2 in all."""
    a = torch.rand(1, 4000, generator=torch.Generator().manual_seed(0))
    a[0, 0] = 1000
    shift = falling(a, torch.ones(1, 4000), torch.tensor([[400.0]]), bits).double()
    assert (a.double() - shift).clamp(0, 1).sum().item() == pytest.approx(400, abs=0.01)


@pytest.mark.parametrize("bits", [1, 2])
def test_what_is_below_the_level_is_not_shifted(bits: int) -> None:
    a, most = torch.tensor([[0.5, 0.25, 9.0]]), torch.tensor([[1.0, 1.0, 0.25]])
    for level in (1.0, 1.5, torch.inf):
        assert falling(a, most, torch.tensor([[level]]), bits) == 0
    assert falling(a, most, torch.zeros(1, 1), bits) >= 9
    assert falling(torch.zeros(1, 3), most, torch.zeros(1, 1), bits) == 0
