"""The gradient by the input of a convolution that reads 1 to 3 channels, several times as fast on a CPU.

PyTorch's own kernel spreads its work over the input's channels, of which a first layer has too few: on MNIST it took
two fifths of a gradient pass of small_cnn_16_32_100, for a small part of the arithmetic. Here it is the product with
the transposed weights, whose columns are added up where they overlap. Weights get no gradient: for search copies alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WIDEST = 3  # channels; with 6 PyTorch's kernel is the faster one


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, spread: Tensor, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(spread)
        ctx.conv, ctx.size = conv, x.shape[2:]
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (spread,), conv = ctx.saved_tensors, ctx.conv
        columns = spread @ grad.flatten(2)  # (B, C * k * k, places)
        return F.fold(columns, ctx.size, conv.kernel_size, padding=conv.padding, stride=conv.stride), None, None


class NarrowConv2d(nn.Conv2d):
    """`conv`, frozen, with that gradient; images (B, C, H, W) in."""

    spread: Tensor  # (C * k * k, O)

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(conv))  # its weights, settings and mode
        self.register_buffer("spread", conv.weight.flatten(1).t().contiguous(), persistent=False)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether `conv` computes what is meant here, where it is worth it."""
        plain = conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros"
        here = conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32
        small = conv.weight[0].numel() <= conv.out_channels  # the columns take no more memory than the gradient itself
        return plain and here and small and conv.in_channels <= WIDEST and not isinstance(conv.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _InputGradient.apply(x, self.spread, self)  # type: ignore[no-any-return]
        return super().forward(x)
