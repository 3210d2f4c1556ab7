"""Whether a search in bf16 is the faster one: on CUDA, and on CPUs that multiply in bf16 where the network is large.

Verdicts stay those of fp32: every hit is verified by the model itself, and survivors are attacked once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.engine.kernels import out_of_memory
from advbench.engine.oracle import gradient
from advbench.engine.search_copy import search_copy

HEAVY = 1e8  # multiply-adds an image: ResNet-18 (6e8) takes half the time in bf16, LeNet5 (1e7) two thirds
LONGER = 4  # times the updates in bf16 for those in fp32 that follow, each of twice the time


def bf16_pays(net: nn.Module, data: Dataset, attacks: Sequence[Attack], second: Sequence[Attack]) -> bool:
    """Decided by the device and by arithmetic, not by a clock: the same on the same machine. `second` is what follows
    `attacks` in fp32: it may cost more than these gain."""
    if data.device.type == "cuda":
        return why_not(net, data) == ""
    first, then = (sum(one.updates(data.num_classes) for one in some) for some in (attacks, second))
    pays = first >= LONGER * then and data.device.type == "cpu" and native() and multiply_adds(net, data) >= HEAVY
    return pays and why_not(net, data) == ""


def why_not(net: nn.Module, data: Dataset) -> str:
    """What stops `net` in bf16: a forward pass that mixes its weights with numbers in fp32, say. Empty if nothing."""
    x, _ = data.batch(slice(0, 2))
    try:
        copy, _ = search_copy(net, torch.bfloat16, example=x[:1])
        z = x.clone().requires_grad_()
        gradient(copy(z).float(), z)
    except (RuntimeError, TypeError) as error:
        if out_of_memory(error):
            raise
        return str(error).strip().partition("\n")[0][:160]
    return ""


def native() -> bool:
    """Whether this CPU has instructions for products of bf16. False with a PyTorch that does not tell."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def multiply_adds(net: nn.Module, data: Dataset) -> float:
    """Of a forward pass, an image, in convolutions and matrix products; 0 where they cannot be counted."""
    x, _ = data.batch(slice(0, 2))  # some models refuse a single one
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            net(x)
    except Exception:  # the counter looks into whatever the model does
        return 0.0
    return counted.get_total_flops() / 2 / len(x)
