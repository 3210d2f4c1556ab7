"""What the trainer does for a method, with the recipe's settings: attacks within the ball, and updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from advbench import ranks
from advbench.attacks.pgd import PGD
from advbench.engine.attack import Attack, Problem, solve
from advbench.methods.base import Losses, Nets, Objective
from advbench.models.outside import Outside
from advbench.recipe import Inner, Recipe
from advbench.threat import Region, around
from advbench.trainer.awp import perturbed
from advbench.trainer.modes import attack_mode


def inner_attack(inner: Inner) -> PGD:
    """PGD with the steps, step size and start of the recipe."""
    start = {"random_start": False} if inner.init == "none" else {"init": inner.init}
    return PGD(name="inner", steps=inner.steps, rel_step=inner.rel_step, step_size=inner.step_size, **start)


class Counter:
    """Counts the samples that pass through networks, with a hook on each network's first layer that has weights."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0
        self.counting = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Passes inside are not counted: they are no cost of the training."""
        before, self.counting = self.counting, False
        try:
            yield
        finally:
            self.counting = before

    def watch(self, net: nn.Module) -> None:
        """Count the passes through `net` from now on."""
        foreign = next((module for module in net.modules() if isinstance(module, Outside)), None)
        if foreign is not None:  # it may not use its first layer, or use it twice
            foreign.net.register_forward_hook(lambda _net, _args, out: self._count(foreign.logits_of(out)))
            return
        first = next(module for module in net.modules() if next(module.parameters(recurse=False), None) is not None)
        first.register_forward_hook(lambda _module, _args, out: self._count(out))

    def _count(self, out: Tensor) -> None:
        if not torch.compiler.is_compiling():
            self.add(out)

    def add(self, out: Tensor) -> None:
        """Count a pass with `out` (B, ...), the output of any layer."""
        self.forwards += len(out) * self.counting
        if out.requires_grad and self.counting:
            self.backwards += len(out)


class Tools:
    """`advbench.methods.base.Tools` for one run.

    `attack_context` makes the contexts in which attacks take gradients, which are with respect to the input alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        nets: Nets,
        optimizers: dict[str, torch.optim.Optimizer],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        attack_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.recipe = recipe
        self.nets = nets
        self.optimizers = optimizers
        self.autocast = autocast
        self.attack_context = attack_context
        self.inner = inner_attack(recipe.inner)
        self.updates = 0  # how often `update` was called

    @property
    def eps(self) -> float:
        """The training eps at this point of its warm-up."""
        warmup = self.recipe.inner.warmup
        share = min(1.0, self.nets.progress / warmup) if warmup else 1.0
        return self.recipe.threat.eps_value * share

    def region(self, x: Tensor, scale: float = 1.0) -> Region:
        eps = torch.full((len(x),), self.eps * scale, dtype=torch.float64, device=x.device)
        return around(self.recipe.threat.norm, x, eps)

    def step_size(self) -> float:
        absolute = self.recipe.inner.step_size
        return absolute if absolute is not None else self.recipe.inner.rel_step * self.eps

    def attack_mode(self) -> AbstractContextManager[None]:
        return attack_mode([self.nets.f, *self.nets.parts.values()], self.recipe.inner.bn_mode)

    def attack(self, objective: Objective, x: Tensor, y: Tensor, attack: Attack | None = None) -> Tensor:
        problem = Problem(self.region(x), y, torch.full_like(y, -1), self.nets.key)
        with self.attack_mode(), self.attack_context():
            return solve(attack or self.inner, objective, problem)

    def gradient(self, objective: Objective, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with self.attack_mode(), self.attack_context(), torch.enable_grad():
            (g,) = torch.autograd.grad(objective(x).sum(), x)
        return g

    def update(self, losses: Losses) -> dict[str, Tensor]:
        awp = self.recipe.awp
        active = awp.gamma > 0 and self.nets.progress >= awp.warmup
        with perturbed(self.nets.f, lambda: _total(losses()), awp.gamma) if active else nullcontext():
            torch.clear_autocast_cache()  # it holds casts of the weights before the perturbation
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            terms = losses()
            _total(terms).backward()
        # Only here: an inner attack's gradients are with respect to this rank's inputs, and need no average over ranks.
        ranks.average_([w.grad for o in self.optimizers.values() for w in _weights(o) if w.grad is not None])
        for optimizer in self.optimizers.values():
            if self.recipe.optim.clip:
                nn.utils.clip_grad_norm_(_weights(optimizer), self.recipe.optim.clip)
            optimizer.step()
        torch.clear_autocast_cache()
        self.updates += 1
        return {name: value.detach() for name, value in terms.items()}


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.float() for value in terms.values()]).sum()
