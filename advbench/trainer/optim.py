"""Optimisers, and the learning rate over the epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from advbench.recipe import Optim, Schedule
from advbench.trainer.steepest import Fista, Steepest


def optimizer(settings: Optim, weights: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of a net's `weights`; on CUDA one fused kernel updates them all."""
    fused = device.type == "cuda"
    if settings.name == "sgd":
        return torch.optim.SGD(
            weights,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            fused=fused,
        )
    plain: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.name in ("sign-gd", "coordinate-descent"):
        return Steepest(weights, sign=settings.name == "sign-gd", **plain)
    if settings.name == "fista":
        return Fista(weights, penalty=settings.penalty, **plain)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    betas = (settings.momentum, 0.999)
    # Fused on CPUs too: the other kernels make the host read their step counts.
    return kind(weights, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay, fused=True)


def factor(schedule: Schedule, progress: float) -> float:
    """The factor on the learning rate when the share `progress` (0 to 1) of the training is done."""
    rise = min(1.0, progress / schedule.warmup) if schedule.warmup else 1.0
    match schedule.name:
        case "piecewise":
            # The tolerance makes a milestone count at the step it falls on, however the division rounds.
            passed = sum(progress >= milestone - 1e-9 for milestone in schedule.milestones)
            return rise * schedule.factor**passed
        case "onecycle":
            return rise * min(progress / schedule.peak, (1 - progress) / (1 - schedule.peak))
        case "cosine":
            return rise * (1 + math.cos(math.pi * progress)) / 2
        case "constant":
            return rise
