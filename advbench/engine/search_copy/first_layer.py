"""The input gradient of a convolution of 1 to 3 input channels, several times as fast on a CPU.

PyTorch's own kernel distributes its work over the input channels, and a first layer has too few of them: on MNIST the
kernel took two fifths of a gradient pass of small_cnn_16_32_100, for a small part of the arithmetic. Here the gradient
is the product with the transposed weights, whose columns are added up where they overlap (`F.fold`). The weights get no
gradient, so this is for search copies, and for the attacks of a training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MAX_CHANNELS = 3  # with 6 channels PyTorch's kernel is faster


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_t: Tensor, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(weight_t)
        ctx.conv, ctx.size = conv, x.shape[2:]
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight_t,), conv = ctx.saved_tensors, ctx.conv
        columns = weight_t @ grad.flatten(2)  # (B, C * k * k, places)
        return F.fold(columns, ctx.size, conv.kernel_size, padding=conv.padding, stride=conv.stride), None, None


@contextmanager
def narrow_gradients(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the first layers of `nets` pass on the faster gradient, once, and their weights get none.

    Not under autocast, whose convolutions are not in fp32.
    """
    modules = [] if torch.is_autocast_enabled("cpu") else [module for net in nets for module in net.modules()]
    convs = [conv for conv in modules if type(conv) is nn.Conv2d and NarrowConv2d.fits(conv)]
    try:
        for conv in convs:
            vars(conv)["forward"] = partial(_narrow, conv, transposed(conv))
        yield
    finally:
        for conv in convs:
            vars(conv).pop("forward", None)


def _narrow(conv: nn.Conv2d, weight_t: Tensor, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return _InputGradient.apply(x, weight_t, conv)  # type: ignore[no-any-return]
    return conv._conv_forward(x, conv.weight, conv.bias)


def transposed(conv: nn.Conv2d) -> Tensor:
    """The weights of `conv` as (C * k * k, O)."""
    return conv.weight.detach().flatten(1).t().contiguous()


class NarrowConv2d(nn.Conv2d):
    """`conv` with the faster input gradient. Its weights are frozen; its input is (B, C, H, W)."""

    weight_t: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(conv))  # takes over its weights, settings and mode
        self.register_buffer("weight_t", transposed(conv), persistent=False)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether the gradient here is right for `conv`, and faster."""
        plain = conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros"
        here = conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32
        small = conv.weight[0].numel() <= conv.out_channels  # columns take no more memory than the output's gradient
        return plain and here and small and conv.in_channels <= MAX_CHANNELS and not isinstance(conv.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        return _narrow(self, self.weight_t, x)
