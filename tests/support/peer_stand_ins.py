"""Stand-ins for torchattacks, Foolbox, ART and adversarial-library: modules of their names with the same interfaces.

All run the same PGD on the cross-entropy, with `steps` steps of a quarter of eps, from the image itself.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

STEPS = 5


def loop(model: Any, x: Tensor, y: Tensor, eps: float, alpha: float | None = None, steps: int = STEPS) -> Tensor:
    z, step = x.clone(), eps / 4 if alpha is None else alpha
    for _ in range(steps):
        z.requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y), z)
        z = (x + (z.detach() + step * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return z


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the four modules in the place of the libraries."""
    for name, contents in {
        "torchattacks": [PGD, Pair, Nearest],
        "foolbox": [PyTorchModel, LinfPGD, L2PGD],
        "art": [ProjectedGradientDescent],
        "art.estimators": [],
        "art.estimators.classification": [PyTorchClassifier],
        "adv_lib": [pgd_linf, nearest],
    }.items():
        module = ModuleType(name)
        module.__version__ = "0"  # type: ignore[attr-defined]
        for one in contents:
            patch.setattr(one, "__module__", name)
            setattr(module, one.__name__, one)
        patch.setitem(sys.modules, name, module)


class PGD:
    """As in torchattacks: bound to a model; eps, alpha and steps are attributes."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = STEPS) -> None:
        self.model, self.model_name, self.device = model, type(model).__name__, torch.device("cpu")
        self.normalization_used: Any = None
        self.eps, self.alpha, self.steps, self.seed = eps, alpha, steps, None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        sys.stdout.write("an attack that prints\n")
        return loop(self.model, x, y, self.eps, self.alpha, self.steps)


class Pair(PGD):
    """FGSM and PGD, one after the other, which have an eps of their own."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255) -> None:
        super().__init__(model, eps)
        self._members = [PGD(model, eps, 1.0, 1), PGD(model, eps, eps / 4)]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = (one(x, y) for one in self._members)
        fell = (self.model(first).argmax(1) != y).view(-1, 1, 1, 1)
        return torch.where(fell, first, second)


class Nearest(PGD):
    """Without eps: far from the image where it has to be."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        del self.eps

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return nearest(self.model, x, y, math.inf)


class PyTorchModel:
    def __init__(self, net: nn.Module, bounds: tuple[float, float], device: Any = None) -> None:
        assert bounds == (0, 1) and not net.training
        self.net = net


class LinfPGD:
    """As in Foolbox: bound to nothing."""

    distance = SimpleNamespace(p=math.inf)

    def __init__(self, *, rel_stepsize: float = 0.25, steps: int = STEPS) -> None:
        self.rel_stepsize, self.steps = rel_stepsize, steps

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, epsilons: float) -> tuple[Tensor, Tensor, None]:
        return x, loop(model.net, x, y, epsilons, self.rel_stepsize * epsilons, self.steps), None


class L2PGD(LinfPGD):
    distance = SimpleNamespace(p=2)


class PyTorchClassifier:
    def __init__(
        self, model: nn.Module, loss: Any, shape: Any, classes: int, clip_values: Any, device_type: str = "cpu"
    ) -> None:
        assert isinstance(loss, nn.Module) and len(shape) == 3 and clip_values == (0.0, 1.0)
        self.model, self.loss, self.classes = model, loss, classes
        self.preprocessing_defences: Any = None
        self.preprocessing = SimpleNamespace(mean=0.0, std=1.0)

    def __deepcopy__(self, memo: Any) -> PyTorchClassifier:
        raise TypeError("an estimator cannot be copied")


class ProjectedGradientDescent:
    """As in ART: bound to an estimator, on arrays."""

    attack_params = ["norm", "eps", "eps_step", "max_iter", "verbose"]  # noqa: RUF012

    def __init__(self, estimator: Any, norm: Any = math.inf, eps: float = 0.4, eps_step: float = 0.1) -> None:
        assert isinstance(estimator, PyTorchClassifier)
        self.estimator, self.norm, self.eps, self.eps_step = estimator, norm, eps, eps_step
        self.max_iter, self.verbose = STEPS, True

    def set_params(self, **fields: Any) -> None:
        vars(self).update(fields)

    def generate(self, x: Any, y: Any) -> Any:
        assert isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and not self.verbose
        labels = torch.from_numpy(y)
        return loop(self.estimator.model, torch.from_numpy(x), labels, self.eps, self.eps_step, self.max_iter).numpy()


def pgd_linf(model: nn.Module, inputs: Tensor, labels: Tensor, ε: float, steps: int = STEPS) -> Tensor:
    return loop(model, inputs, labels, ε, steps=steps)


def nearest(model: nn.Module, inputs: Tensor, labels: Tensor, norm: float, grid: int = 8) -> Tensor:
    """The first adversarial point on a grid of eps, else a point far away."""
    assert norm == math.inf
    found = 1 - inputs
    for part in range(grid, 0, -1):
        z = loop(model, inputs, labels, 0.3 * part / grid)
        fell = (model(z).argmax(1) != labels).view(-1, 1, 1, 1)
        found = torch.where(fell, z, found)
    return found
