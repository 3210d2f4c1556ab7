"""Attention over places in the image, before the classifier (after Liu and JaJa, IJCAI 2019, arXiv:1810.02424).

A reconstruction: the abstract speaks of a nonlinear attention module that gives larger weights to robust features;
the form here is ours.

c_i = u . tanh(W l_i + V g),  a = softmax_i(c),  phi = sum_i a_i l_i,  logits = head(P phi)

l_i (C,) are the local features at place i and g (D,) the global ones of the inner net, whose own head classifies;
P (D x C) brings phi to the length that it takes, and is left out where C = D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from advbench.models.base import Wrapper, check_positive

ENTRIES: dict[str, dict[str, Any]] = {
    "attention": {
        "make": "Attention",
        "kind": "wrapper",
        "form": "WIDTH",
        "summary": "the classifier sees a mean of local features, weighted by attention (after Liu and JaJa 2019)",
    },
}


class Attention(Wrapper):
    """A copy of `net` that classifies phi; `width` units compare the local with the global features.

    Raises UserError when the net has no feature maps.
    """

    def __init__(self, *, net: nn.Module, width: int = 64) -> None:
        super().__init__(net)
        check_positive(width=width)
        channels, size = self._shapes()
        self.local = nn.Conv2d(channels, width, 1)
        self.whole = nn.Linear(size, width, bias=False)
        self.score = nn.Conv2d(width, 1, 1, bias=False)
        self.project = nn.Identity() if channels == size else nn.Linear(channels, size, bias=False)
        self.feature_dim = channels

    def weights(self, maps: Tensor, g: Tensor) -> Tensor:
        """a (B, 1, H, W), which sums to 1 over the places of `maps` (B, C, H, W); g (B, D)."""
        c = self.score(torch.tanh(self.local(maps) + self.whole(g)[:, :, None, None]))
        return c.flatten(2).softmax(2).view_as(c)  # type: ignore[no-any-return]

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inner net's maps (B, C, H, W), and phi (B, C)."""
        maps, g = self.net.maps_and_features(x)
        return maps, (self.weights(maps, g) * maps).sum((2, 3))

    def features(self, x: Tensor) -> Tensor:
        """phi (B, C)."""
        return self.maps_and_features(x)[1]

    def head(self, z: Tensor) -> Tensor:
        return self.net.head(self.project(z))  # type: ignore[no-any-return]

    def _shapes(self) -> tuple[int, int]:
        """C and D, from one image; in eval mode, which moves no statistics."""
        training = self.net.training
        self.net.eval()
        device = next(self.net.parameters()).device
        with torch.no_grad():
            maps, g = self.net.maps_and_features(
                torch.zeros(1, self.in_channels, self.image_size, self.image_size, device=device)
            )
        self.net.train(training)
        return maps.shape[1], g.shape[1]
