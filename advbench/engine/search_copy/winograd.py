"""3x3 convolutions of many channels by Winograd's minimal filtering F(4x4, 3x3): Lavin and Gray 2016, arXiv:1509.09308.

A tile of 4 x 4 outputs is A' [sum over channels of (G g G') * (B' d B)] A, d the 6 x 6 inputs of the tile and g a
filter: 36 products per pair of channels instead of 144. The gradient with respect to the input is the transposed
formula. PyTorch's convolutions already run at a CPU's full speed, so the only gain left is to compute fewer products.
With few channels the transforms would cost what the products save. The weights get no gradient, so this is for search
copies only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MIN_CHANNELS = 128  # in and out
_MAX_PRODUCTS = 0.35  # as a share of the plain convolution's; parts of the last tiles may lie outside the image
_TILES_AT_ONCE = 128  # more tiles do not fit in the CPU's caches, fewer read the filters too often

# The polynomials are interpolated at 0, 1, -1, 2, -2 and infinity.
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
_INTO, _OUT = torch.kron(_B, _B), torch.kron(_A, _A)  # (36, 36), (16, 36): transforms of rows and columns at once


class WinogradConv2d(nn.Conv2d):
    """`conv` computed by Winograd's algorithm. Its weights are frozen; its input is (B, C, H, W) of any size."""

    filters: Tensor  # (36, C, O)

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(conv))  # takes over its weights, settings and mode
        filters = torch.einsum("ap,bq,ocpq->abco", _G.double(), _G.double(), conv.weight.double())
        self.register_buffer("filters", filters.flatten(0, 1).float().contiguous(), persistent=False)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether the algorithm applies to `conv`, and is faster."""
        settings = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
        plain = settings == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
        here = conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32
        return plain and here and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS

    @staticmethod
    def filter_bytes(conv: nn.Conv2d) -> int:
        """The memory of the transformed filters of `conv` in bytes: four times that of its weights."""
        return 4 * 36 * conv.in_channels * conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if 36 * _tiles(height) * _tiles(width) > _MAX_PRODUCTS * 9 * height * width:
            return super().forward(x)
        return _Convolution.apply(x, self.filters, self.bias)  # type: ignore[no-any-return]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(filters)
        (count, channels, height, width), (down, across) = x.shape, (_tiles(x.shape[2]), _tiles(x.shape[3]))
        margins = (0, 0, 1, 4 * across - width + 1, 1, 4 * down - height + 1)
        tiles = F.pad(x.permute(0, 2, 3, 1), margins).unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3)
        # The output must be no view, because the network may change it in place.
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
        (count, channels, height, width), (down, across) = grad.shape, (_tiles(grad.shape[2]), _tiles(grad.shape[3]))
        margins = (0, 0, 0, 4 * across - width, 0, 4 * down - height)
        tiles = F.pad(grad.permute(0, 2, 3, 1), margins).view(count, down, 4, across, 4, channels)
        tiles = tiles.permute(2, 4, 0, 1, 3, 5)
        x = grad.new_zeros(count, down + 1, 4, across + 1, 4, filters.shape[1])
        for some in _parts(count, down * across):
            sums = (_OUT.t() @ tiles[:, :, some].reshape(16, -1)).view(36, -1, channels) @ filters.transpose(1, 2)
            d = (_INTO.t() @ sums.view(36, -1)).view(6, 6, -1, down, across, filters.shape[1])
            d = d.permute(2, 3, 0, 4, 1, 5)
            # Tiles overlap by 2: rows and columns past the fourth belong to the next tile.
            x[some, :-1, :, :-1] = d[:, :, :4, :, :4]
            x[some, 1:, :2, :-1] += d[:, :, 4:, :, :4]
            x[some, :-1, :, 1:, :2] += d[:, :, :4, :, 4:]
            x[some, 1:, :2, 1:, :2] += d[:, :, 4:, :, 4:]
        inner = _images(x)[:, :, 1 : height + 1, 1 : width + 1]
        return inner.contiguous(memory_format=torch.channels_last), None, None


def _tiles(side: int) -> int:
    """The number of tiles along a side."""
    return -(-side // 4)


def _parts(count: int, tiles: int) -> list[slice]:
    """Slices of `count` images of `tiles` tiles each, about _TILES_AT_ONCE tiles per slice.

    Nearly equal lengths avoid a slice of one row, whose product uses another kernel and rounds differently.
    """
    times = min(count, -(-count * tiles // _TILES_AT_ONCE))
    return [slice(count * i // times, count * (i + 1) // times) for i in range(times)]


def _images(tiles: Tensor) -> Tensor:
    """Tiles (B, down, 4, across, 4, C) as images (B, C, 4 down, 4 across)."""
    return tiles.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
