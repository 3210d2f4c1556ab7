"""Attention over positions in the image, beside the classifier's own features (after Liu and JaJa, IJCAI 2019,
arXiv:1810.02424).

A reconstruction: the abstract describes a nonlinear attention module that gives larger weights to robust features and
suppresses the background. The form here is our choice.

c_i = u . tanh(W l_i + V g),  a = softmax_i(c),  phi = sum_i a_i l_i,  logits = head(g) + E phi

l_i (C,) are the inner net's local features at position i, g (D,) its global features, and head is its own head. The
classifier receives [g; phi]. E (K x C) starts from 0, so that training starts from the inner net itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from advbench.errors import UserError
from advbench.models.base import Wrapper, check_positive

ENTRIES: dict[str, dict[str, Any]] = {
    "attention": {
        "make": "Attention",
        "kind": "wrapper",
        "form": "WIDTH",
        "summary": "a mean of local features, weighted by attention, beside the own features (after Liu and JaJa 2019)",
    },
}


class Attention(Wrapper):
    """A copy of `net` that classifies [g; phi]. It has the same logits as `net` until it is trained.

    `width`: the length of u.

    Raises UserError if the net has no feature maps, or `width` is not a whole number above 0.
    """

    def __init__(self, *, net: nn.Module, width: int = 64) -> None:
        super().__init__(net)
        check_positive(width=width)
        if not self.has_head:
            raise UserError(
                f"attention needs a net whose logits are a linear layer of its features: {self.arch} is none"
            )
        channels, size = self._shapes()
        self.local = nn.Conv2d(channels, width, 1)
        self.whole = nn.Linear(size, width, bias=False)
        self.score = nn.Conv2d(width, 1, 1, bias=False)
        self.extra = nn.Linear(channels, self.num_classes, bias=False)
        self.feature_dim = size + channels
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set E to 0."""
        nn.init.zeros_(self.extra.weight)

    def weights(self, maps: Tensor, g: Tensor) -> Tensor:
        """a (B, 1, H, W), which sums to 1 over the positions of `maps` (B, C, H, W), for g (B, D)."""
        c = self.score(torch.tanh(self.local(maps) + self.whole(g)[:, :, None, None]))
        return c.flatten(2).softmax(2).view_as(c)  # type: ignore[no-any-return]

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inner net's feature maps (B, C, H, W), and [g; phi] (B, D + C)."""
        maps, g = self.net.maps_and_features(x)
        return maps, torch.cat([g, (self.weights(maps, g) * maps).sum((2, 3))], 1)

    def features(self, x: Tensor) -> Tensor:
        """[g; phi] (B, D + C)."""
        return self.maps_and_features(x)[1]

    def head(self, z: Tensor) -> Tensor:
        split = self.feature_dim - self.extra.in_features
        return self.net.head(z[:, :split]) + self.extra(z[:, split:])  # type: ignore[no-any-return]

    def _shapes(self) -> tuple[int, int]:
        """C and D, from a pass of one image, in eval mode so that no statistic changes."""
        training = self.net.training
        self.net.eval()
        device = next(self.net.parameters()).device
        with torch.no_grad():
            maps, g = self.net.maps_and_features(torch.zeros(1, *self.shape, device=device))
        self.net.train(training)
        return maps.shape[1], g.shape[1]
