"""What all sections of the measurement on a card share: the model, the images, the sizes, and the card's own rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from advbench.checkpoint import Loaded
from advbench.data.dataset import Dataset
from advbench.engine.search_copy import search_copy
from advbench.evaluator.slots import seconds_of

DTYPES = {"bf16": torch.bfloat16, "TF32": torch.float32, "IEEE fp32": torch.float32}


@dataclass(frozen=True)
class Sizes:
    """How much is measured: rows of a step, images of a training batch and of AutoAttack by section, slots of the
    host's part, and how many steps a timing of the training has at most."""

    rows: tuple[int, ...] = (1024, 4096, 256)
    batches: tuple[int, ...] = (512, 128, 1024)
    ours: int = 1000
    reference: tuple[int, int] = (64, 512)  # of the first batch, and of both at most
    whole: int = 10_000
    slots: int = 4096
    steps: int = 50
    workers: int = 4  # of the plain loop's DataLoader


@dataclass(frozen=True)
class Bench:
    """`model` in eval mode and `data` on `device`; `eps` as it is written, Linf. Journals lie in `folder`."""

    model: Loaded
    data: Dataset
    eps: str
    device: torch.device
    sizes: Sizes
    folder: Path

    @cached_property
    def matrix_rate(self) -> float:
        """Operations a second of a product of square bf16 matrices."""
        return matrix_rate(self.device)

    @cached_property
    def operations(self) -> tuple[float, float]:
        """Operations of a forward pass, and of what a gradient by the input adds to it: an image."""
        x, _ = self.data.batch(slice(0, 2))
        copy, _ = search_copy(self.model.net, example=x[:1])
        z = x.clone().requires_grad_()
        with FlopCounterMode(display=False) as forward:
            total = copy(z).sum()
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(total, z)
        return forward.get_total_flops() / len(x), backward.get_total_flops() / len(x)

    def share(self, operations: float, seconds: float) -> str:
        """So many operations in so many seconds, as a share of the bf16 matrix rate."""
        return f"{operations / seconds / self.matrix_rate:.1%} of the bf16 matrix rate"

    def held(self, work: Callable[[], None]) -> str:
        """Do `work`, and tell the most memory that PyTorch held on the card meanwhile."""
        if self.device.type != "cuda":
            work()
            return ""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return f"{torch.cuda.max_memory_reserved(self.device) / 2**30:.1f} GiB"


def matrix_rate(device: torch.device, kind: str = "bf16") -> float:
    """Operations a second of a product of square matrices, 8192 a side on CUDA and 1024 on a CPU."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=DTYPES[kind])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "TF32" else "highest")
    try:
        return 2 * side**3 / seconds_of(lambda: a @ a, device)
    finally:
        torch.set_float32_matmul_precision(before)
