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
from torch.nn import functional as F

MAX_CHANNELS = 3  # with 6 channels PyTorch's kernel is faster


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.conv, ctx.size = conv, x.shape[2:]
        return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,), conv = ctx.saved_tensors, ctx.conv
        columns = weight.flatten(1).t() @ grad.flatten(2)  # (B, C * k * k, places)
        return F.fold(columns, ctx.size, conv.kernel_size, padding=conv.padding, stride=conv.stride), None, None


def _narrow(conv: nn.Conv2d, input: Tensor) -> Tensor:
    """`conv` with the faster gradient where it applies; the weights, those of now, get none."""
    in_fp32, inside_func = not torch.is_autocast_enabled("cpu"), torch._C._functorch.is_functorch_wrapped_tensor(input)
    if torch.is_grad_enabled() and input.dim() == 4 and in_fp32 and not inside_func:
        return _InputGradient.apply(input, conv.weight.detach(), conv)  # type: ignore[no-any-return]
    return conv._conv_forward(input, conv.weight, conv.bias)


@contextmanager
def narrow_gradients(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the first layers of `nets` pass on the faster gradient, and their weights get none.

    Not those of a net that torch.compile has made, which would be compiled again each time.
    """
    modules = [list(net.modules()) for net in nets]
    plain = [one for some in modules if not any(hasattr(each, "_orig_mod") for each in some) for one in some]
    convs = [one for one in plain if type(one) is nn.Conv2d and NarrowConv2d.fits(one) and "forward" not in vars(one)]
    try:
        for conv in convs:
            vars(conv)["forward"] = partial(_narrow, conv)
        yield
    finally:
        for conv in convs:
            vars(conv).pop("forward", None)


class NarrowConv2d(nn.Conv2d):
    """`conv` with the faster input gradient. Its weights are frozen."""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(conv))  # takes over its weights, settings and mode

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether the gradient here is right for `conv`, and faster."""
        plain = conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros"
        here = conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32
        small = conv.weight[0].numel() <= conv.out_channels  # columns take no more memory than the output's gradient
        return plain and here and small and conv.in_channels <= MAX_CHANNELS and not isinstance(conv.padding, str)

    def forward(self, input: Tensor) -> Tensor:
        return _narrow(self, input)
