"""3x3 convolutions of many channels by Winograd's minimal filtering F(4x4, 3x3): Lavin and Gray 2016, arXiv:1509.09308.

A tile of 4 x 4 outputs is A' [sum over channels of (G g G') * (B' d B)] A, d the 6 x 6 inputs it is made of and g a
filter: 36 products a pair of channels where the plain sum has 144. The gradient by the input is the transposed formula.
PyTorch's convolutions already run at a CPU's full speed, so that fewer products are all that is left to win; with few
channels the transforms would take what the products save. Weights get no gradient: for search copies alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MIN_CHANNELS = 128  # in and out
_MOST = 0.35  # products, of those of the plain sum: part of the last tiles may lie outside of the image
_AT_ONCE = 128  # tiles: more of them leave the CPU's caches, fewer read the filters too often

# Polynomials are compared at 0, 1, -1, 2, -2 and infinity.
_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_B = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
).float()  # the paper's B'
_A = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).float()
_INTO, _OUT = torch.kron(_B, _B), torch.kron(_A, _A)  # (36, 36) and (16, 36): both sides of a tile at once


class WinogradConv2d(nn.Conv2d):
    """`conv`, frozen, so computed; images (B, C, H, W) in, of any size."""

    filters: Tensor  # (36, C, O)

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(conv))  # its weights, settings and mode
        filters = torch.einsum("ap,bq,ocpq->abco", _G.double(), _G.double(), conv.weight.double())
        self.register_buffer("filters", filters.flatten(0, 1).float().contiguous(), persistent=False)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether `conv` computes what is meant here, where it is worth it."""
        settings = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
        plain = settings == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
        here = conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32
        return plain and here and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS

    @staticmethod
    def filter_bytes(conv: nn.Conv2d) -> int:
        """What the transformed filters of `conv` take, four times its weights."""
        return 4 * 36 * conv.in_channels * conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if 36 * _up(height) * _up(width) > _MOST * 9 * height * width:
            return super().forward(x)
        return _Convolution.apply(x, self.filters, self.bias)  # type: ignore[no-any-return]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(filters)
        (count, channels, height, width), (down, across) = x.shape, (_up(x.shape[2]), _up(x.shape[3]))
        margins = (0, 0, 1, 4 * across - width + 1, 1, 4 * down - height + 1)
        tiles = F.pad(x.permute(0, 2, 3, 1), margins).unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3)
        # Not a view of anything: a network may change what it is given in place.
        shape = (count, filters.shape[2], 4 * down, 4 * across)
        whole = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        out = whole.permute(0, 2, 3, 1).view(count, down, 4, across, 4, -1)
        for some in _parts(count, down * across):
            sums = (_INTO @ tiles[:, :, some].reshape(36, -1)).view(36, -1, channels) @ filters
            y = _OUT @ sums.view(36, -1)
            out[some] = y.view(4, 4, -1, down, across, filters.shape[2]).permute(2, 3, 0, 4, 1, 5)
        if bias is not None:
            whole += bias[:, None, None]
        if (height, width) == whole.shape[2:]:
            return whole
        return whole[:, :, :height, :width].contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (filters,) = ctx.saved_tensors
        (count, channels, height, width), (down, across) = grad.shape, (_up(grad.shape[2]), _up(grad.shape[3]))
        margins = (0, 0, 0, 4 * across - width, 0, 4 * down - height)
        tiles = F.pad(grad.permute(0, 2, 3, 1), margins).view(count, down, 4, across, 4, channels)
        tiles = tiles.permute(2, 4, 0, 1, 3, 5)
        x = grad.new_zeros(count, down + 1, 4, across + 1, 4, filters.shape[1])
        for some in _parts(count, down * across):
            sums = (_OUT.t() @ tiles[:, :, some].reshape(16, -1)).view(36, -1, channels) @ filters.transpose(1, 2)
            d = (_INTO.t() @ sums.view(36, -1)).view(6, 6, -1, down, across, filters.shape[1])
            d = d.permute(2, 3, 0, 4, 1, 5)
            # Tiles overlap by 2: what is past the fourth row or column belongs to the next tile.
            x[some, :-1, :, :-1] = d[:, :, :4, :, :4]
            x[some, 1:, :2, :-1] += d[:, :, 4:, :, :4]
            x[some, :-1, :, 1:, :2] += d[:, :, :4, :, 4:]
            x[some, 1:, :2, 1:, :2] += d[:, :, 4:, :, 4:]
        inner = _images(x)[:, :, 1 : height + 1, 1 : width + 1]
        return inner.contiguous(memory_format=torch.channels_last), None, None


def _up(side: int) -> int:
    """Tiles along a side."""
    return -(-side // 4)


def _parts(count: int, tiles: int) -> list[slice]:
    """`count` images of so many tiles each, about as many at a time: a single row's product has a kernel of its own,
    which rounds otherwise."""
    times = min(count, -(-count * tiles // _AT_ONCE))
    return [slice(count * i // times, count * (i + 1) // times) for i in range(times)]


def _images(tiles: Tensor) -> Tensor:
    """Tiles (B, down, 4, across, 4, C) as images (B, C, 4 down, 4 across)."""
    return tiles.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
