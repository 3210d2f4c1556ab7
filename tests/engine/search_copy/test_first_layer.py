"""Input gradients of first layers: equal to PyTorch's up to rounding, and used only where they apply."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advbench.engine.search_copy.copy import prepacked, search_copy
from advbench.engine.search_copy.first_layer import NarrowConv2d, narrow_gradients
from advbench.models import build

CONVS = {
    "lenet5": nn.Conv2d(1, 32, 5, padding=2),
    "strided": nn.Conv2d(1, 16, 4, stride=2, padding=1),
    "remainder": nn.Conv2d(3, 8, 3, stride=2),  # no window reads the last row and column of 12 x 9
    "one by one": nn.Conv2d(2, 5, 1, bias=False),
    "oblong": nn.Conv2d(3, 4, (5, 2), stride=(1, 3), padding=(0, 1)),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_is_pytorchs(name: str, layout: torch.memory_format) -> None:
    conv = CONVS[name].requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, conv.in_channels, 12, 9, generator=generator).contiguous(memory_format=layout).requires_grad_()
    narrow = NarrowConv2d(conv)
    wanted, got = conv(x), narrow(x)
    assert torch.equal(wanted, got)
    weights = torch.randn(wanted.shape, generator=generator).contiguous(memory_format=layout)
    (theirs,), (ours,) = (torch.autograd.grad((z * weights).sum(), x) for z in (wanted, got))
    assert torch.allclose(theirs, ours, atol=1e-5 * float(theirs.abs().max())) and ours.abs().sum() > 0


def test_only_first_layers_of_fp32_search_copies_on_a_cpu_are_replaced() -> None:
    net = build("small_cnn_16_32_100", num_classes=10, in_channels=1, image_size=28, seed=0)
    twin, _ = search_copy(net)
    found = [name for name, module in twin.named_modules() if isinstance(module, NarrowConv2d)]
    assert found == ["net.conv1"]
    assert not any(isinstance(module, NarrowConv2d) for module in net.modules())
    assert prepacked(twin.net, torch.rand(2, 1, 28, 28)) is not None
    half, _ = search_copy(net, torch.bfloat16)
    assert not any(isinstance(module, NarrowConv2d) for module in half.modules())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 64, 3),
        nn.Conv2d(3, 16, 7),
        nn.Conv2d(3, 60, 3, groups=3),
        nn.Conv2d(3, 64, 3, dilation=2),
        nn.Conv2d(3, 64, 3, padding="same"),
        nn.Conv2d(3, 64, 3, padding=1, padding_mode="circular"),
    ],
)
def test_convolutions_that_do_not_fit_stay(conv: nn.Conv2d) -> None:
    twin, _ = search_copy(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(1, 16, 3)))
    assert type(twin.net[0]) is nn.Conv2d and type(twin.net[2]) is NarrowConv2d


def test_a_convolution_with_a_hook_is_not_replaced() -> None:
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU())
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    twin, _ = search_copy(net)
    (theirs,), (ours,) = (torch.autograd.grad(f(x).sum(), x) for f in (net, twin))
    assert torch.allclose(theirs, ours, atol=1e-6)


def test_attacks_of_a_training_take_it_too_and_leave_the_net_as_it_was() -> None:
    net = build("small_cnn_16_32_100", num_classes=10, in_channels=1, image_size=28, seed=0).train()
    x = torch.rand(4, 1, 28, 28, requires_grad=True)
    with torch.no_grad():
        plain = net(x)
    calls = []
    handle = net.conv1.register_forward_hook(lambda *_: calls.append(1))
    (theirs,) = torch.autograd.grad(net(x).square().sum(), x)
    with narrow_gradients([net]):
        logits = net(x)
        (ours,) = torch.autograd.grad(logits.square().sum(), x)
        with torch.no_grad():
            assert torch.equal(net(x), plain)  # by the same kernels
    handle.remove()
    assert len(calls) == 3 and "forward" not in vars(net.conv1)
    assert logits.grad_fn is not None and torch.allclose(theirs, ours, atol=1e-5 * float(theirs.abs().max()))
    net(x).sum().backward()
    assert net.conv1.weight.grad is not None


def gradient_of(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x).float().square().sum(), x)[0]  # type: ignore[no-any-return]


def test_its_gradient_is_of_the_weights_of_the_moment() -> None:
    """Functional calls pass other weights, and hooks such as those of pruning set them anew in each pass."""
    conv = nn.Conv2d(1, 16, 3)
    x, other = torch.rand(2, 1, 8, 8), {"weight": torch.rand(16, 1, 3, 3), "bias": torch.rand(16)}
    hooked = nn.Conv2d(1, 16, 3, bias=False)

    def flip(module: nn.Module, _: object) -> None:
        hooked.weight.data.mul_(-1.0)

    hooked.register_forward_pre_hook(flip)

    def called(z: Tensor) -> Tensor:
        return torch.func.functional_call(conv, other, (z,))  # type: ignore[no-any-return]

    for net, f in ((conv, called), (hooked, hooked)):
        with narrow_gradients([net]):
            ours = gradient_of(f, x)
        theirs = gradient_of(f, x)  # of a sum of squares, which a change of sign leaves as it is
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


class Awkward(nn.Module):
    """Calls its first layer by keyword, on single images, under an autocast of its own, or inside of torch.func."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(1, 16, 3), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "keyword":
            return self.conv(input=x)  # type: ignore[no-any-return]
        if self.how == "single":
            return torch.stack([self.conv(image) for image in x])
        if self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.conv(x)  # type: ignore[no-any-return]
        return torch.func.vmap(self.conv)(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["keyword", "single", "autocast", "vmap"])
def test_what_runs_without_it_runs_with_it(how: str) -> None:
    net, x = Awkward(how), torch.rand(2, 1, 8, 8)
    theirs = gradient_of(net, x)
    with narrow_gradients([net]):
        assert torch.allclose(gradient_of(net, x), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_a_gradient_of_the_gradient_is_pytorchs() -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Softplus()), torch.rand(2, 1, 8, 8, requires_grad=True)

    def second() -> Tensor:
        (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]  # type: ignore[no-any-return]

    theirs = second()
    with narrow_gradients([net]):
        assert torch.allclose(second(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_a_forward_of_ones_own_stays() -> None:
    net = nn.Conv2d(1, 16, 3)
    mine = net.forward = lambda x: x  # type: ignore[method-assign, assignment]
    with narrow_gradients([net]):
        assert net.forward is mine
    assert net.forward is mine
