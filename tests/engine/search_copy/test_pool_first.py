"""ReLU moved behind max pooling: equal logits and gradients to the bit, and only where nothing else reads the ReLU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.data import load
from advbench.engine.search_copy.copy import SearchCopy, search_copy
from advbench.models import build
from advbench.models.base import straight_through


class Layers(nn.Module):
    """A convolution, and the layers after it that `how` names."""

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
    plain = SearchCopy(twin.net)
    plain.in_layout(torch.channels_last)
    for ours, wanted in zip(derived(twin, x), derived(plain, x), strict=True):
        assert torch.equal(ours, wanted) and bool(wanted.abs().sum() > 0)


@pytest.mark.parametrize("how", ["read twice", "another function", "mean", "random", "branch"])
def test_other_layers_stay(how: str) -> None:
    x, _ = load("digits", "test").batch(slice(0, 8))
    twin, _ = search_copy(Layers(how), example=x[:1])
    assert twin.quick is twin.net
    if how == "random":
        assert not torch.equal(twin(x), twin(x))


class Stopped(Layers):
    """Stops gradients, which a trace does not show."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rounded = (x * 16).round() / 16 - x
        return super().forward(x + rounded)


class Rounds(torch.autograd.Function):
    """Rounds, with the identity as gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 16).round() / 16

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Own(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Rounds.apply(x))


class Declared(Layers):
    """The root module itself is declared non-differentiable: it reads `straight_through` in its forward pass."""

    straight_through = False

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * 16).round() / 16
        return super().forward(x + (rounded - x).detach() if self.straight_through else rounded)


class Named(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(input=self.conv(x)), 2).flatten(1)[:, :10]


class Graph(Layers):
    """Has a submodule named `graph`, which is an attribute of fx.GraphModule."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.graph = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.graph(x))


@pytest.mark.parametrize("kind", [Stopped, Own, Declared, Named, Graph])
def test_models_that_a_trace_would_change_stay(kind: type[Layers]) -> None:
    x, _ = load("digits", "test").batch(slice(0, 8))
    torch.manual_seed(0)
    net = kind("modules")
    twin, _ = search_copy(net, example=x[:1])
    plain = SearchCopy(twin.net)
    plain.in_layout(torch.channels_last)
    for through in (False, True):
        with straight_through(twin) if through else nullcontext():
            for ours, wanted in zip(derived(twin, x), derived(plain, x), strict=True):
                assert torch.equal(ours, wanted)
    if kind not in (Own, Named):  # some releases of fx handle these two
        assert twin.quick is twin.net


def test_layers_with_hooks_stay() -> None:
    x, _ = load("digits", "test").batch(slice(0, 8))
    net = Layers("modules")
    net.relu.register_forward_hook(lambda module, given, out: out + 1)
    twin, _ = search_copy(net, example=x[:1])
    assert twin.quick is twin.net
    other = Layers("modules")
    other.pool.register_full_backward_hook(lambda module, given, grad: None)
    twin, _ = search_copy(other, example=x[:1])
    assert twin.quick is twin.net


def test_lenet5_and_its_features() -> None:
    x, _ = load("digits", "test").batch(slice(0, 8))
    for dtype in (None, torch.bfloat16):
        twin, _ = search_copy(build("lenet5", num_classes=10, in_channels=1, image_size=8, seed=0), dtype)
        assert twin.quick is not twin.net
        assert torch.allclose(twin.features_and_logits(x)[1], derived(twin, x)[0], atol=1e-6)
