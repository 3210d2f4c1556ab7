import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.data.batches import epoch_order


@given(st.integers(0, 300), st.integers(0, 9), st.integers(0, 9))
def test_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert epoch_order(n, seed, epoch).sort().values.tolist() == list(range(n))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    orders = [epoch_order(100, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(orders[0], orders[3])
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_every_image_comes_early_as_often_as_late() -> None:
    places = torch.stack([epoch_order(50, 0, epoch).argsort() for epoch in range(2000)]).double()
    assert (places.mean(0) - 24.5).abs().max() < 5 * (50**2 / 12 / 2000) ** 0.5
