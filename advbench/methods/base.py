"""What a training method is: an objective for the attack, and named loss terms.

A method is one file: a frozen dataclass whose fields are the paper's symbols with the paper's defaults, and a
literal ENTRIES that tells of it. The trainer owns the loop, the optimisers, train and eval modes, the logs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench.engine.attack import Attack
from advbench.errors import UserError
from advbench.models.base import Model
from advbench.recipe import Recipe, method_fields
from advbench.registry import Entry, find
from advbench.threat import Region

Objective = Callable[[Tensor], Tensor]
"""A value (B,) to be made large, for inputs (B, C, H, W); no row may depend on another."""
Losses = Callable[[], dict[str, Tensor]]


@dataclass
class Nets:
    """What a method computes with, at one batch of B rows.

    `f` is trained and deployed; `parts` are the method's own modules. `key` (B,) int64: keys for
    `advbench.rng`, fresh for each sample, view and epoch. `index` (B,) int64: the samples' places in the
    training split. `progress`: the share of the training done, 0 to 1, for ramps.
    """

    f: Model
    parts: dict[str, nn.Module] = field(default_factory=dict)
    label_smoothing: float = 0.0
    key: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    progress: float = 0.0
    notes: dict[str, Tensor] = field(default_factory=dict)

    def ce(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, K), in float32, with the recipe's label smoothing."""
        return functional.cross_entropy(logits.float(), y, label_smoothing=self.label_smoothing)

    def note(self, name: str, value: Tensor) -> None:
        """Have a number (a scalar tensor) averaged over the epoch into the metrics; it is no term of the loss."""
        self.notes[name] = value.detach()


@dataclass(frozen=True)
class Setup:
    """What a method's parts are built for. `build(seed)` makes another network of the recipe's architecture."""

    recipe: Recipe
    num_classes: int
    in_channels: int
    image_size: int
    feature_dim: int
    batch_size: int  # rows of a full batch, all views together
    class_names: tuple[str, ...]
    seed: int  # for the parts' initial weights
    build: Callable[[int], Model]


class Tools(Protocol):
    """What the trainer does for a method, with the recipe's settings. Only `perturb` and `step` are handed it."""

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By net: "f", and the parts that learn."""

    def region(self, x: Tensor, scale: float = 1.0) -> Region:
        """The balls around x (B, C, H, W), of `scale` times the training eps."""

    def step_size(self) -> float:
        """The recipe's step of the inner attack, which grows with eps where that has a warm-up."""

    def attack_mode(self) -> AbstractContextManager[None]:
        """Every net in the mode the recipe has for attacks (`inner.bn_mode`); put back at the end."""

    def attack(self, objective: Objective, x: Tensor, y: Tensor, attack: Attack | None = None) -> Tensor:
        """The recipe's inner attack, or another one, within the balls around x; in attack mode."""

    def gradient(self, objective: Objective, x: Tensor) -> Tensor:
        """The gradient of `objective` by x, and by nothing else; in attack mode."""

    def update(self, losses: Losses) -> dict[str, Tensor]:
        """One step of every optimiser down the sum of the terms; returns them detached.

        Weight perturbation and gradient clipping are done here. `losses` may be called twice.
        """


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of methods: the defaults are adversarial training.

    To write one: `inner` and `outer` suffice as a rule; `parts`, `views`, `wrap`, `perturb` and `step` are for
    methods that need them. A method never logs, never changes train or eval mode, never calls an optimiser
    outside `step`.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "fourier-linf")
    views: ClassVar[int] = 1  # augmented copies of each sample; hooks see all of them, one copy after the other
    needs_maps: ClassVar[bool] = False  # feature_maps of the model
    compiles: ClassVar[bool] = True  # no gradient is differentiated, which torch.compile cannot

    @property
    def attacks(self) -> bool:
        """Whether f learns from attacks of the recipe's eps."""
        return True

    def check(self, recipe: Recipe, num_classes: int) -> None:
        """Raise UserError, before any training, for what the method cannot do."""
        if recipe.threat.norm not in self.norms:
            known = ", ".join(self.norms)
            raise UserError(f"{recipe.method.name} cannot train for norm {recipe.threat.norm}: choose from {known}")

    def wrap(self, f: Model, seed: int) -> Model:
        """f, or a wrapper of `models/` around it, where the method changes inference."""
        return f

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        """Further modules, trained with f, saved in the run folder and resumed; each with its own optimiser."""
        return {}

    def part_optim(self, name: str) -> dict[str, Any]:
        """Fields of `optim` that differ for a part's optimiser; {"lr": 0} for a part without one."""
        return {}

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        """What the attack makes large; None for no attack. Called, and calls f, in attack mode."""
        return lambda z: functional.cross_entropy(nets.f(z).float(), y, reduction="none")

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The named terms (scalars) whose sum the nets learn from; x_adv is x where there is no attack."""
        return {"ce": nets.ce(nets.f(x_adv), y)}

    def perturb(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> Tensor:
        """x_adv for x (B, C, H, W), y (B,): by the recipe's attack. Called in attack mode."""
        objective = self.inner(nets, x, y)
        return x if objective is None else tools.attack(objective, x, y)

    def step(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> dict[str, Tensor]:
        """All that is done with a batch; returns the terms to be logged, detached. Called in train mode."""
        with tools.attack_mode():
            x_adv = self.perturb(nets, x, y, tools)
        return tools.update(lambda: self.outer(nets, x, x_adv, y))


def make(recipe: Recipe) -> Method:
    """The method of a recipe, its fields checked and typed. Raises UserError."""
    entry: Entry = find("methods", recipe.method.name)
    maker = entry.load()
    if not (isinstance(maker, type) and issubclass(maker, Method)):
        raise UserError(f"method {entry.name!r} is no advbench.methods.base.Method")
    return maker(**method_fields(maker, {**entry.set, **recipe.method.settings}))
