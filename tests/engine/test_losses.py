"""Losses against their definitions in numpy, sample by sample, and their gradients."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from advbench.engine.losses import LOSSES, aims, kl, likeliest, margin, wrong

COUNT = 40
Logits = NDArray[np.float64]


def by_hand(name: str, z: Logits, y: int, target: int) -> float:
    """The loss of one sample; a target of -1 means untargeted."""
    reached = z[target] if target >= 0 else np.delete(z, y).max()
    if name == "ce":
        return float(z[target] - logsumexp(z) if target >= 0 else logsumexp(z) - z[y])
    if name == "cw":
        return float(reached - z[y])
    first, _, third, *rest = np.sort(z)[::-1]
    lower = (third + rest[0]) / 2 if target >= 0 else third
    return float((reached - z[y]) / (first - lower))


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.arange(COUNT) % 6


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_values_and_gradients_are_those_of_the_definition(name: str, targeted: bool, logits: Tensor, y: Tensor) -> None:
    target = (y + 1 + torch.arange(COUNT) % 5) % 6 if targeted else torch.full_like(y, -1)
    assert not (target == y).any()
    wanted = [by_hand(name, *row) for row in zip(logits.numpy(), y.tolist(), target.tolist(), strict=True)]
    for some in (
        logits,
        logits.clone().requires_grad_(),
    ):  # losses may take a shorter way where no gradient is asked for
        assert np.allclose(LOSSES[name](some, y, target).detach().numpy(), wanted)
    assert torch.autograd.gradcheck(partial(LOSSES[name], y=y, target=target), logits.requires_grad_())


def test_a_batch_may_mix_targeted_and_untargeted_rows(logits: Tensor, y: Tensor) -> None:
    target = torch.where(torch.arange(COUNT) % 3 == 0, (y + 2) % 6, -1)
    for name, loss in LOSSES.items():
        wanted = [by_hand(name, *row) for row in zip(logits.numpy(), y.tolist(), target.tolist(), strict=True)]
        assert np.allclose(loss(logits, y, target).numpy(), wanted), name


def test_kl_is_weighted_by_the_clean_answer(logits: Tensor) -> None:
    here, clean = logits, logits.flip(0)
    p, q = (np.exp(z - logsumexp(z, axis=1, keepdims=True)) for z in (clean.numpy(), here.numpy()))
    assert np.allclose(kl(here, clean).numpy(), (p * np.log(p / q)).sum(1))


def test_the_margin_is_above_0_where_the_answer_is_wrong(logits: Tensor, y: Tensor) -> None:
    assert torch.equal(margin(logits, y) > 0, wrong(logits, y))
    assert 0 < wrong(logits, y).sum() < COUNT
    rows = zip(logits.numpy(), y.tolist(), strict=True)
    assert np.allclose(margin(logits, y), [by_hand("cw", z, own, -1) for z, own in rows])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_wrong(bad: float) -> None:
    """Also if the right class has the largest logit, or the only one that is not finite."""
    y = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[3.0, 1, bad], [3, 1, 2], [bad, 1, 2], [1, 3, 2]])
    assert wrong(logits, y).tolist() == [True, False, True, False]
    assert wrong(logits[[1, 3]], y[[1, 3]]).tolist() == [False, False]


def test_targets_are_the_likeliest_wrong_classes_in_their_order(logits: Tensor, y: Tensor) -> None:
    for n, some in ((1, 1), (3, 3), (5, 5), (9, 5)):
        found = likeliest(logits, y, n)
        assert found.shape == (COUNT, some)
        for row, z, own in zip(found.tolist(), logits.numpy(), y.tolist(), strict=True):
            assert row == [k for k in np.argsort(-z).tolist() if k != own][:n]


def test_a_chosen_target_applies_to_all_but_its_own_images(logits: Tensor, y: Tensor) -> None:
    assert aims(logits, y, 3, 2)[:, 0].tolist() == [-1 if own == 2 else 2 for own in y.tolist()]
    assert torch.equal(aims(logits, y, 3, None), likeliest(logits, y, 3))
    assert aims(logits, y, 0, None).tolist() == [[-1]] * COUNT
