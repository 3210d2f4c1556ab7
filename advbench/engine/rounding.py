"""Whether passes round alike with other rows or threads, seen on random images.

In what order a kernel adds up does not depend on the values, so passes that differ in it give other bits on any images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advbench import rng
from advbench.engine.attack import Asks
from advbench.engine.oracle import gradient


def random_images(shape: tuple[int, ...], rows: int) -> Tensor:
    """Images (rows, C, H, W) of `shape` (C, H, W) on the CPU, the same ones each time."""
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(0))


def results(net: nn.Module, x: Tensor, *, backward: bool) -> list[Tensor]:
    """The logits of a forward pass; with `backward` those of a pass with a gradient of them all, and the gradient."""
    if not backward:
        with torch.no_grad():
            return [net(x)]
    query = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = net(query)
        return [logits.detach(), gradient(logits.float().square(), query)]


class Widths:
    """Which passes of fewer than `slots` rows of images (C, H, W) of `shape` round as those of all slots, on a CPU.

    Each width of a kind of pass is tried once.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, ...], slots: int) -> None:
        self.net, self.slots = net, slots
        self._x = random_images(shape, slots)
        self._found: dict[tuple[bool, int], bool] = {}
        self._whole: dict[bool, list[Tensor]] = {}

    def alike(self, width: int, turn: tuple[Asks, ...]) -> bool:
        """Whether passes of `width` rows round as those of all slots, of the kinds that `turn` asks for."""
        return all(self._alike(width, backward) for backward in {asks != "logits" for asks in turn})

    def _alike(self, width: int, backward: bool) -> bool:
        key = backward, width
        if key not in self._found:
            try:
                with rng.kept():
                    if backward not in self._whole:
                        self._whole[backward] = results(self.net, self._x, backward=backward)
                    narrow = results(self.net, self._x[:width], backward=backward)
                pairs = zip(narrow, self._whole[backward], strict=True)
                self._found[key] = all(torch.equal(one, whole[:width]) for one, whole in pairs)
            except Exception:  # raised by the model's own code, such as for fixed batches, or for want of memory
                self._found[key] = False
        return self._found[key]
