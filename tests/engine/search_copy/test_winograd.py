"""Winograd convolutions: values and gradients equal to the plain ones up to rounding, rows independent of each other,
used only where they apply."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from advbench.engine.search_copy.copy import prepacked, search_copy
from advbench.engine.search_copy.winograd import WinogradConv2d
from advbench.models import build

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def _conv(channels: int = 128, out: int = 128, **settings: object) -> nn.Conv2d:
    torch.manual_seed(0)
    settings = {"padding": 1, **settings}
    return nn.Conv2d(channels, out, settings.pop("kernel_size", 3), **settings).requires_grad_(False)  # type: ignore[arg-type]


def _images(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1)) - 0.3


def _value_and_gradient(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    z = x.clone().requires_grad_()
    y = net(z)
    weights = torch.rand(y[:1].shape, generator=torch.Generator().manual_seed(2)).to(y) - 0.5
    return y.detach(), torch.autograd.grad((y * weights).sum(), z)[0]


# 14 and 7 are no whole number of tiles; with 5 and 2 too much of the tiles lies outside the image.
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (16, 12), (14, 14), (7, 7), (5, 5), (2, 9)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_the_plain_convolution(height: int, width: int, layout: torch.memory_format, bias: bool) -> None:
    conv = _conv(128, 160, bias=bias)
    x = _images(5, 128, height, width).contiguous(memory_format=layout)
    y, grad = _value_and_gradient(WinogradConv2d(conv), x)
    exact_y, exact_grad = _value_and_gradient(conv.double(), x.double())
    assert y.shape == exact_y.shape and grad.shape == x.shape
    assert (y - exact_y).abs().max() < 3e-5 * exact_y.abs().max()
    assert (grad - exact_grad).abs().max() < 3e-5 * exact_grad.abs().max()


@pytest.mark.parametrize("side", [4, 8, 32])
def test_a_row_is_the_same_whatever_its_neighbours(side: int) -> None:
    net = WinogradConv2d(_conv())
    x = _images(130, 128, side, side)[:: side // 4]
    whole = _value_and_gradient(net, x)
    half = len(x) // 2
    for some in (slice(0, half), slice(half, len(x)), slice(3, len(x))):
        for part, same in zip(_value_and_gradient(net, x[some]), whole, strict=True):
            assert torch.equal(part, same[some])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for mixed, same in zip(_value_and_gradient(net, x[order]), whole, strict=True):
        assert torch.equal(mixed, same[order])


@pytest.mark.parametrize(
    "conv",
    [
        _conv(64),
        _conv(128, 64),
        _conv(kernel_size=1, padding=0),
        _conv(kernel_size=5),
        _conv(stride=2),
        _conv(padding=0),
        _conv(padding="same"),
        _conv(dilation=2),
        _conv(groups=2),
        _conv(padding_mode="reflect"),
        _conv().double(),
    ],
)
def test_convolutions_that_do_not_fit(conv: nn.Conv2d) -> None:
    assert WinogradConv2d.fits(_conv()) and not WinogradConv2d.fits(conv)


def _filtered(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, WinogradConv2d)]


class TestSearchCopies:
    def test_of_wide_networks_use_them(self) -> None:
        net = build("resnet18", num_classes=10, in_channels=3, image_size=32, seed=0).eval()
        twin, _ = search_copy(net)
        assert len(_filtered(twin)) == 9 and not _filtered(net)  # those of three stages without stride 2
        assert prepacked(twin.net, _images(2, 3, 32, 32)) is None
        x = _images(4, 3, 32, 32)
        (_, ours), (_, theirs) = _value_and_gradient(twin, x), _value_and_gradient(net, x)
        assert (ours - theirs).abs().sum() < 1e-2 * theirs.abs().sum()  # a ReLU near zero may be active in one only
        with torch.no_grad():
            assert (twin(x) - net(x)).abs().max() < 1e-4 * net(x).abs().max()

    def test_do_not_use_them_in_half_precision_or_for_layers_with_hooks(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 128, 3), _conv(), _conv())
        net[1].register_forward_hook(lambda module, inputs, output: 2 * output)
        x = _images(2, 3, 12, 12)
        twin, _ = search_copy(net, example=x)
        assert _filtered(twin) == ["net.2"]
        assert torch.allclose(twin(x), net(x), atol=1e-4)
        assert not _filtered(search_copy(net, torch.bfloat16, example=x)[0])

    def test_keep_within_the_memory_for_filters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net, x = nn.Sequential(nn.Conv2d(3, 128, 3), _conv(), _conv(128, 256), _conv(256, 128)), _images(1, 3, 8, 8)
        room = 4 * 36 * 128 * 128
        for times, found in ((0.9, 0), (1, 1), (2, 1), (3, 2), (5, 3)):
            monkeypatch.setattr("advbench.engine.search_copy.copy.MAX_FILTER_BYTES", int(times * room))
            assert _filtered(search_copy(net, example=x)[0]) == ["net.1", "net.2", "net.3"][:found]

    def test_stay_plain_if_logits_would_differ(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 128, 1), _conv(bias=False), _Cancelling())
        twin, notes = search_copy(net, example=_images(1, 3, 8, 8))
        assert not _filtered(twin) and "logits differ" in notes[0]


class _Cancelling(nn.Module):
    """Its logits depend on the last digits of its input."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        return 1 + 1e4 * (mean - mean.half().float())


@pytest.mark.parametrize("side", [8, 9])  # whole tiles, and tiles that the image cuts
def test_the_output_may_be_changed_in_place(side: int) -> None:
    """As in torchvision's residual blocks with their in-place ReLU."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x)
            out += x
            return self.relu(out)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = Block()
        x = torch.randn(2, 128, side, side)
    quick = copy.deepcopy(plain)
    quick.conv = WinogradConv2d(plain.conv)
    gradients = []
    for net in (plain, quick):
        z = x.clone().requires_grad_()
        net(z).square().sum().backward()
        gradients.append(z.grad)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-2)  # sums of 1,152 products, in another order
