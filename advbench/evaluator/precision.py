"""Whether a search in bf16 is the faster one: on CUDA, and on CPUs that multiply in bf16 where the network is large.

Verdicts stay those of fp32: every hit is verified by the model itself, and survivors are attacked once more.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from advbench.data.dataset import Dataset

HEAVY = (
    1e8  # multiply-adds an image; ResNet-18 (6e8) takes half the time in bf16, LeNet5 (1e7) two thirds, less no less
)


def bf16_pays(net: nn.Module, data: Dataset) -> bool:
    """Decided by the device and by the network's arithmetic, not by a clock: the same on the same machine."""
    if data.device.type == "cuda":
        return True
    return data.device.type == "cpu" and native() and multiply_adds(net, data) >= HEAVY


def native() -> bool:
    """Whether this CPU has instructions for products of bf16. False with a PyTorch that does not tell."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def multiply_adds(net: nn.Module, data: Dataset) -> float:
    """Of a forward pass, an image, in convolutions and matrix products."""
    x, _ = data.batch(slice(0, 1))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        net(x)
    return counted.get_total_flops() / 2
