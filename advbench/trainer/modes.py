"""Train and eval modes, and weights, during attacks and weight perturbation: the one place that sets them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_AUTOCAST_FORWARDS = {nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}


@contextmanager
def attack_mode(nets: Iterable[nn.Module], bn_mode: Literal["eval", "train"]) -> Iterator[None]:
    """Put `nets` into eval mode; restore their modes at the end.

    With bn_mode "train" BatchNorm normalises by the batch. The running statistics never change.
    """
    modules = [module for net in nets for module in net.modules()]
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        if bn_mode == "train":
            with frozen_statistics(modules):
                for module in modules:
                    module.training = isinstance(module, _BatchNorm)
                yield
        else:
            yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


@contextmanager
def frozen_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, BatchNorm in train mode leaves its running statistics and its count of batches unchanged."""
    tracking = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


@contextmanager
def fixed_weights(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, no weight of `nets` requires a gradient, and under autocast those of its layers have its dtype.

    Autocast keeps no cast between calls of compiled code, which would cast every weight again in each step of an
    attack. Only weights that autocast casts too are: of linear layers and convolutions.
    """
    modules = [module for net in nets for module in net.modules()]
    asking = [weight for module in modules for weight in module.parameters(recurse=False) if weight.requires_grad]
    layers = [module for module in modules if type(module).forward in _AUTOCAST_FORWARDS]
    before = [(weight, weight.data, weight.grad) for module in layers for weight in module.parameters(recurse=False)]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        for weight, value, _ in before:
            device = value.device.type
            if value.dtype == torch.float32 and torch.is_autocast_enabled(device):
                weight.grad = None  # the compiler refuses one of another dtype
                weight.data = value.to(torch.get_autocast_dtype(device))
        yield
    finally:
        for weight, value, gradient in before:
            weight.data, weight.grad = value, gradient
        for weight in asking:
            weight.requires_grad_(True)
