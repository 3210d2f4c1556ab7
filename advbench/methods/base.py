"""The base class of training methods: an objective for the attack, and named loss terms.

A method is one file: a frozen dataclass whose fields are the paper's symbols with the paper's defaults, and a
literal ENTRIES that describes it. The trainer owns the loop, the optimisers, train and eval modes and the logs.
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
"""Maps inputs (B, C, H, W) to the values (B,) that an attack maximises. No row may depend on another row."""
Losses = Callable[[], dict[str, Tensor]]
"""Computes the named loss terms (scalars)."""


@dataclass
class Nets:
    """The networks of a run, and what a method needs to know of the current batch of B rows.

    `f` is trained and deployed; `parts` are the method's own modules. `key` (B,) int64: keys for
    `advbench.rng`, new for each sample, view and epoch. `index` (B,) int64: the samples' places in the
    training split. `progress`: the share of the training that is done, 0 to 1. `notes`: see `note`.
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
        """Record a scalar tensor, which is averaged over the epoch into the metrics. It is not part of the loss."""
        self.notes[name] = value.detach()


@dataclass(frozen=True)
class Setup:
    """What `Method.parts` needs to build modules.

    `build(seed, arch=None)` makes another network of the recipe's architecture and settings, or one of `arch`, a name
    of the zoo, with its default settings and the recipe's normalisation.
    """

    recipe: Recipe
    num_classes: int
    shape: tuple[int, int, int]  # (C, H, W) of an image
    feature_dim: int  # 0 where the net has no features
    batch_size: int  # rows of a full batch, all views together
    seed: int  # for the parts' initial weights
    build: Callable[..., Model]


class Tools(Protocol):
    """What the trainer does for a method, with the recipe's settings. Only `perturb` and `step` receive it."""

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimisers by name: "f", and each part that is trained."""

    def region(self, x: Tensor, scale: float = 1.0) -> Region:
        """The balls around x (B, C, H, W) of radius `scale` times the training eps."""

    def step_size(self) -> float:
        """The step size of the recipe's inner attack. A relative one grows with eps during a warm-up."""

    def attack_mode(self) -> AbstractContextManager[None]:
        """Put every net into the recipe's mode for attacks (`inner.bn_mode`), and restore the modes at the end."""

    def attack(self, objective: Objective, x: Tensor, y: Tensor, attack: Attack | None = None) -> Tensor:
        """Adversarial examples (B, C, H, W) in the balls around x, by `attack` or the recipe's; in attack mode."""

    def gradient(self, objective: Objective, x: Tensor) -> Tensor:
        """The gradient (B, C, H, W) of `objective` with respect to x alone, computed in attack mode."""

    def update(self, losses: Losses) -> dict[str, Tensor]:
        """Take one step of every optimiser on the sum of the terms. Returns the terms, detached.

        Weight perturbation and gradient clipping happen here. `losses` may be called twice.
        """


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base class of methods. Its defaults are adversarial training.

    Most methods override only `inner` and `outer`; `parts`, `views`, `wrap`, `perturb` and `step` are for
    methods that need more. A method never logs, never changes train or eval mode, and never calls an optimiser
    outside `step`.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "fourier-linf")
    views: ClassVar[int] = 1  # augmented copies of each sample; a batch holds all first copies, then all second ones
    compiles: ClassVar[bool] = True  # False where a gradient is differentiated: torch.compile cannot do that

    @property
    def attacks(self) -> bool:
        """Whether f is trained on adversarial examples of the recipe's eps."""
        return True

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields of the recipe's inner attack that have no effect."""
        return (
            () if self.attacks else ("inner.steps", "inner.rel_step", "inner.step_size", "inner.init", "inner.warmup")
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """What the method uses of the net beside its logits: "features", "head", "maps"."""
        return ()

    @property
    def is_paced(self) -> bool:
        """Whether a step depends on `nets.progress`, so that a finished run cannot be trained on for more epochs."""
        return False

    def check(self, recipe: Recipe, num_classes: int) -> None:
        """Raise UserError, before training, for a recipe that the method does not support."""
        if recipe.threat.norm not in self.norms:
            known = ", ".join(self.norms)
            raise UserError(f"{recipe.method.name} cannot train for norm {recipe.threat.norm}: choose from {known}")

    def wrap(self, f: Model, seed: int) -> Model:
        """Returns f, or a wrapper of `models/` around f if the method changes inference."""
        return f

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        """Further modules by name. Each has its own optimiser; all are saved in the run folder and resumed."""
        return {}

    def part_optim(self, name: str) -> dict[str, Any]:
        """The fields of `optim` in which a part's optimiser differs; {"lr": 0} means no optimiser."""
        return {}

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        """The objective that the attack maximises; None for no attack. It is called in attack mode."""
        return lambda z: functional.cross_entropy(nets.f(z).float(), y, reduction="none")

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The named loss terms (scalars), whose sum is minimised. x_adv is x if there is no attack."""
        return {"ce": nets.ce(nets.f(x_adv), y)}

    def perturb(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> Tensor:
        """Adversarial examples for x (B, C, H, W) and y (B,), by the recipe's attack. Called in attack mode."""
        objective = self.inner(nets, x, y)
        return x if objective is None else tools.attack(objective, x, y)

    def step(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> dict[str, Tensor]:
        """Train on one batch. Returns the terms to be logged, detached. Called in train mode."""
        with tools.attack_mode():
            x_adv = self.perturb(nets, x, y, tools)
        return tools.update(lambda: self.outer(nets, x, x_adv, y))


def make(recipe: Recipe) -> Method:
    """The method of a recipe. Raises UserError for an unknown method, an unknown field or a wrong type."""
    entry: Entry = find("methods", recipe.method.name)
    maker = entry.load()
    if not (isinstance(maker, type) and issubclass(maker, Method)):
        raise UserError(f"method {entry.name!r} is not a subclass of advbench.methods.base.Method")
    return maker(**method_fields(maker, {**entry.set, **recipe.method.settings}))
