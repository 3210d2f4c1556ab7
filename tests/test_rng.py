"""Counter-based random numbers: known values, the right distributions, and independence of the batch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from advbench import rng


def test_bits_are_those_of_splitmix64():
    # The published first outputs for seed 1234567, as in Java, Rust and C.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    drawn = rng.bits(torch.tensor([1234567]), (5,))[0]
    assert [value % 2**64 for value in drawn.tolist()] == known


def test_an_iteration_draws_on_where_the_one_before_ended():
    """No number is drawn twice, whatever the iterations of the items."""
    key = rng.keys(0, "square", torch.arange(3))
    stream = rng.bits(key, (60,))
    at = torch.tensor([0, 4, 11])
    for row, drawn in enumerate(rng.draws(key, at, 5)):
        assert torch.equal(drawn, stream[row, 5 * at[row] : 5 * at[row] + 5])


@given(st.integers(-(2**62), 2**62), st.integers(0, 2**40))
def test_numbers_do_not_depend_on_the_batch(seed, index):
    alone = rng.keys(seed, "pgd", torch.tensor([index]), torch.tensor([3]), 1)
    among = rng.keys(seed, "pgd", torch.tensor([7, index, 9]), torch.tensor([0, 3, -1]), 1)
    assert among[1] == alone[0]
    for draw in (rng.uniform, rng.signs):
        assert torch.equal(draw(among, (2, 3))[1], draw(alone, (2, 3))[0])
    # Logarithms and cosines of a vector and of what is left over may differ by a rounding.
    assert torch.allclose(rng.normal(among, (2, 3))[1], rng.normal(alone, (2, 3))[0], rtol=1e-5, atol=1e-6)
    below = torch.tensor([5, 17, 3])
    assert rng.integers(among, below)[1] == rng.integers(alone, below[1:2])[0]


def test_every_part_of_a_key_counts():
    base = (0, "pgd", torch.tensor([5]), torch.tensor([-1]), 0)
    drawn = {int(rng.keys(*base)[0])}
    for other in (
        (1, *base[1:]),
        (0, "fgsm", *base[2:]),
        (0, "pgd", torch.tensor([6]), torch.tensor([-1]), 0),
        (0, "pgd", torch.tensor([5]), torch.tensor([0]), 0),
        (0, "pgd", torch.tensor([5]), torch.tensor([-1]), 1),
        (0, "pgd", torch.tensor([-1]), torch.tensor([5]), 0),
    ):
        drawn.add(int(rng.keys(*other)[0]))
    assert len(drawn) == 7


def test_uniform_is_uniform_within_a_row_and_across_keys():
    key = rng.keys(0, "test", torch.arange(400))
    drawn = rng.uniform(key, (500,))
    assert drawn.min() >= 0 and drawn.max() < 1
    for values in (drawn.flatten(), drawn[:, 0], drawn[0]):
        counts = np.histogram(values.numpy(), bins=20, range=(0, 1))[0]
        assert stats.chisquare(counts).pvalue > 0.001


def test_normal_is_normal_and_uncorrelated_between_neighbours():
    drawn = rng.normal(rng.keys(0, "test", torch.arange(300)), (100,)).double().numpy()
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.001
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.02


def test_signs_are_balanced():
    drawn = rng.signs(rng.keys(0, "test", torch.arange(100)), (100,))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((drawn > 0).sum()), drawn.numel()).pvalue > 0.001


@pytest.mark.parametrize("below", [1, 2, 7, 28])
def test_integers_reach_every_value_equally(below):
    drawn = rng.integers(rng.keys(0, "test", torch.arange(5000)), torch.full((5000,), below))
    counts = np.bincount(drawn.numpy(), minlength=below)
    assert len(counts) == below
    if below > 1:
        assert stats.chisquare(counts).pvalue > 0.001


def test_global_generators_are_not_used():
    before = torch.get_rng_state()
    rng.normal(rng.keys(0, "test", torch.arange(3)), (4,))
    assert torch.equal(before, torch.get_rng_state())


def test_the_global_generators_start_from_the_seed_and_end_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    drawn = []
    for seed in (3, 2**61, 3):
        with rng.kept(seed):
            drawn.append(draw())
    with pytest.raises(ValueError, match="on the way"), rng.kept(3):
        draw()
        raise ValueError("on the way")
    assert drawn[0] == drawn[2] != drawn[1]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert after == before
