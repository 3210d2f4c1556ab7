"""Train and eval modes during attacks and weight perturbation: the one place that sets them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
