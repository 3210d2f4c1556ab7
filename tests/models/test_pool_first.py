"""ReLU behind max pooling: the same logits and gradients to the bit, and only where nothing else sees them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.data import load
from advbench.models import build
from advbench.models.search_copy import SearchCopy, search_copy


class Layers(nn.Module):
    """A convolution, and what is told to follow it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.relu, self.leaky = nn.Conv2d(1, 4, 3), nn.ReLU(inplace=how == "in place"), nn.LeakyReLU()
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.mean = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        if self.how == "functions":
            z = F.max_pool2d(torch.relu(z), 2, ceil_mode=True)
        elif self.how in ("modules", "in place"):
            z = self.pool(self.relu(z))
        elif self.how == "read twice":
            active = self.relu(z)
            z = self.pool(active) + active.mean()
        elif self.how == "another function":
            z = self.pool(self.leaky(z))
        elif self.how == "mean":
            z = self.mean(self.relu(z))
        elif self.how == "random":
            z = self.pool(self.relu(z)) + torch.rand(())
        elif self.how == "branch":
            z = self.pool(self.relu(z)) if z.sum() > 0 else z
        return z.flatten(1)[:, :10]


def derived(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    z = x.clone().requires_grad_()
    logits = net(z)
    (gradient,) = torch.autograd.grad(logits.square().sum(), z)
    return logits.detach(), gradient


@pytest.mark.parametrize("how", ["functions", "modules", "in place"])
def test_logits_and_gradients_are_the_same_to_the_bit(how: str) -> None:
    x, _ = load("digits", "test").batch(slice(0, 32))
    torch.manual_seed(0)
    net = Layers(how)
    twin, _ = search_copy(net, example=x[:1])
    assert twin.quick is not twin.net
    plain = SearchCopy(twin.net, None, True)
    for ours, wanted in zip(derived(twin, x), derived(plain, x), strict=True):
        assert torch.equal(ours, wanted) and bool(wanted.abs().sum() > 0)


@pytest.mark.parametrize("how", ["read twice", "another function", "mean", "random", "branch"])
def test_what_is_no_such_pair_stays(how: str) -> None:
    x, _ = load("digits", "test").batch(slice(0, 8))
    twin, _ = search_copy(Layers(how), example=x[:1])
    assert twin.quick is twin.net
    if how == "random":
        assert not torch.equal(twin(x), twin(x))


def test_hooks_see_what_they_saw() -> None:
    x, _ = load("digits", "test").batch(slice(0, 8))
    net = Layers("modules")
    net.relu.register_forward_hook(lambda module, given, out: out + 1)
    twin, _ = search_copy(net, example=x[:1])
    assert twin.quick is twin.net


def test_lenet5_and_its_features() -> None:
    x, _ = load("digits", "test").batch(slice(0, 8))
    for dtype in (None, torch.bfloat16):
        twin, _ = search_copy(build("lenet5", num_classes=10, in_channels=1, image_size=8, seed=0), dtype)
        assert twin.quick is not twin.net
        assert torch.equal(twin.features_and_logits(x)[1], derived(twin, x)[0])
