"""Whether a search in bf16 is faster: on CUDA from compute capability 8.0 on, and on CPUs with bf16 instructions if the
network is large; in both, if the attacks are long beside what is attacked once more in fp32.

Every hit is still verified by the model itself in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.engine.kernels import has_bf16, out_of_memory
from advbench.engine.oracle import gradient
from advbench.engine.search_copy import search_copy

# For one image. In bf16 ResNet-18 (6e8) takes half the time, LeNet5 (1e7) two thirds.
HEAVY_MULTIPLY_ADDS = 1e8
# The time of a pass in fp32 in passes in bf16: on CUDA that of arithmetic without TF32 beside bf16's matrix cores.
FP32_PASS = {"cpu": 2.0, "cuda": 8.0}
IN_DOUBT = 0.25  # the share of the images that is attacked again in fp32, rather more than was seen (`fp32_recheck`)


def bf16_pays(net: nn.Module, data: Dataset, attacks: Sequence[Attack], recheck: Sequence[Attack]) -> bool:
    """Whether `attacks` in bf16 and then `recheck` in fp32 take less time than `attacks` in fp32.

    Decided from the device and from counts of operations, not from measured times, so that it is always the same on the
    same machine.
    """
    kind = data.device.type
    if not has_bf16(data.device) or not fewer_passes(attacks, recheck, classes=data.num_classes, fp32=FP32_PASS[kind]):
        return False
    heavy = kind == "cuda" or multiply_adds(net, data) >= HEAVY_MULTIPLY_ADDS
    return heavy and bf16_failure(net, data) == ""


def fewer_passes(attacks: Sequence[Attack], recheck: Sequence[Attack], *, classes: int, fp32: float) -> bool:
    """Whether `attacks` in bf16 take fewer passes than in fp32, a pass in which is worth `fp32` of those in bf16.

    A share IN_DOUBT of the images meets `recheck`, and once more the attacks without gradients, in fp32.
    """
    again = [*recheck, *(one for one in attacks if not one.follows_gradient())]
    first, then = (sum(sum(one.passes(classes)) for one in some) for some in (attacks, again))
    return first + fp32 * IN_DOUBT * then < fp32 * first


def bf16_failure(net: nn.Module, data: Dataset) -> str:
    """The error of `net` in bf16, such as that of a forward pass that mixes in fp32 tensors; "" if it works."""
    x, _ = data.batch(slice(0, 2))
    try:
        copy, _ = search_copy(net, torch.bfloat16, example=x[:1])
        z = x.clone().requires_grad_()
        gradient(copy(z).float(), z)
    except Exception as error:  # a model from elsewhere may raise anything
        if out_of_memory(error):
            raise
        return str(error).strip().partition("\n")[0][:160]
    return ""


def multiply_adds(net: nn.Module, data: Dataset) -> float:
    """Multiply-adds of convolutions and matrix products in one image's forward pass; 0 where they cannot be counted."""
    x, _ = data.batch(slice(0, 2))  # some models refuse a batch of one
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            net(x)
    except Exception:  # the counter may fail on any operation of the model
        return 0.0
    return counted.get_total_flops() / 2 / len(x)
