"""Nets are trained in NHWC, but for those that do not run in it, or whose gradients oneDNN gets wrong there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench.trainer.layout import to_layout

X = torch.rand(2, 3, 8, 6)


class By(nn.Module):
    """A net whose convolution is a function of its weights (o, i, h, w)."""

    def __init__(self, weights: tuple[int, ...], forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.weights, self.then = nn.Conv2d(3, weights[1], 3), nn.Parameter(torch.rand(weights)), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.first(x), self.weights)


NETS: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor], torch.memory_format]] = {
    "3x3": ((8, 4, 3, 3), lambda x, w: functional.conv2d(x, w, stride=2), torch.channels_last),
    "no stride": ((8, 4, 1, 1), functional.conv2d, torch.channels_last),
    "wide": ((8, 16, 1, 1), lambda x, w: functional.conv2d(x, w, stride=2), torch.channels_last),
    "narrow": ((8, 4, 1, 1), lambda x, w: functional.conv2d(x, w, stride=(1, 2)), torch.contiguous_format),
    "view": ((8, 4, 3, 3), lambda x, w: functional.conv2d(x, w).view(len(x), -1), torch.contiguous_format),
}


@pytest.mark.parametrize("name", NETS)
def test_layout_of_a_net(name: str) -> None:
    weights, forward, layout = NETS[name]
    net = By(weights, forward)
    assert to_layout(net, X) is layout
    assert net.first.weight.is_contiguous(memory_format=layout)


def test_gradients_of_a_narrow_net_are_those_of_float64() -> None:
    weights, forward, _ = NETS["narrow"]
    net = By(weights, forward)
    x = X.contiguous(memory_format=to_layout(net, X))
    net(x).square().sum().backward()
    found = net.weights.grad
    net.double().zero_grad()
    net(X.double()).square().sum().backward()
    assert found is not None and net.weights.grad is not None
    torch.testing.assert_close(found.double(), net.weights.grad, rtol=1e-4, atol=1e-4)
