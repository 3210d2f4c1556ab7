"""Linear classifiers, whose distances to the decision boundary have closed forms: as one layer, and as convolutions."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from advbench.errors import UserError
from advbench.models.base import Model, check_positive

ENTRIES: dict[str, dict[str, Any]] = {
    "linear": {"make": "Linear", "summary": "logits = W x + b: closed-form robustness"},
    "conv_linear": {
        "make": "ConvLinear",
        "summary": "linear too, as circular convolutions over the whole image and a linear layer (setting depth)",
    },
}


class Linear(Model):
    """logits = W x + b. The features are the (normalised) pixels themselves.

    `bias`: whether there is a b.
    """

    def __init__(self, *, bias: bool = True, **common: Any) -> None:
        super().__init__(**common)
        self.feature_dim = prod(self.shape)
        self.linear = nn.Linear(self.feature_dim, self.num_classes, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        return self.normalise(x).flatten(1)

    def head(self, z: Tensor) -> Tensor:
        return self.linear(z)  # type: ignore[no-any-return]


class ConvLinear(Model):
    """The linear convolutional net of Gunasekar et al. 2018 (arXiv:1806.00468) and Faghri et al. 2021 (2102.08868).

    Each channel passes `depth` - 1 circular convolutions, z_i = sum_k w_k x_(i + k) with a filter w as large as the
    image, and a linear layer reads the result. The net expresses what `linear` does. Trained by gradient descent on
    separable data of two classes, a depth of 2 comes to the least ||F w||_1, so to the largest margin in fourier-linf.

    - `depth`: of convolutions and the linear layer together.
    - `scale`: of the initial weights, times that which keeps the size of signals; from a small one the bias shows
      sooner.
    - `bias`: whether the linear layer has a bias.
    """

    def __init__(self, *, depth: int = 2, scale: float = 0.1, bias: bool = True, **common: Any) -> None:
        super().__init__(**common)
        check_positive(depth=depth)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise UserError(f"scale is {scale!r}: write a number above 0")
        self.feature_dim, self.scale = prod(self.shape), scale
        self.linear = nn.Linear(self.feature_dim, self.num_classes, bias=bias)
        self.filters = nn.ParameterList(torch.empty(self.shape) for _ in range(depth - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filters anew, and scale the linear layer's weights, which must be new."""
        for w in self.filters:
            nn.init.normal_(w, 0.0, self.scale / prod(self.shape[1:]) ** 0.5)
        with torch.no_grad():
            self.linear.weight.mul_(self.scale)

    def features(self, x: Tensor) -> Tensor:
        z = torch.fft.rfft2(self.normalise(x).float())
        for w in self.filters:
            z = z * torch.fft.rfft2(w.float()).conj()
        return torch.fft.irfft2(z, s=self.shape[1:]).to(x.dtype).flatten(1)

    def head(self, z: Tensor) -> Tensor:
        return self.linear(z)  # type: ignore[no-any-return]
