"""Multi-task learning: its limits and gradients. The tasks themselves are in tests/models/test_tasks.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from advbench.errors import UserError
from advbench.methods.base import make
from advbench.methods.multi_task import MultiTask
from advbench.recipe import Recipe
from advbench.trainer.session import Session

Recipes = Callable[..., Recipe]
Runs = Callable[..., Session]


def test_weight_zero_trains_the_net_as_the_base_does(
    recipe: Recipes, trained: Runs, same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    """macro and autoencoder need no further pass, so even BatchNorm's statistics are equal."""
    tasks = "method.tasks=macro,autoencoder"
    for plain, several in (("standard", "multi-task"), ("pgd-at", "multi-task-at")):
        base = trained(recipe(plain, "validation.select=clean"))
        with_tasks = trained(recipe(several, tasks, "method.weight=0", "validation.select=clean"))
        assert same(base.nets.f, with_tasks.nets.f)


def test_heads_learn_and_the_loss_is_main_plus_weight_times_the_mean(recipe: Recipes, trained: Runs) -> None:
    session = trained(recipe("multi-task", "method.tasks=rotation,macro", "method.weight=0.5"), 0)
    before = {name: part.head.weight.clone() for name, part in session.nets.parts.items()}  # type: ignore[union-attr]
    x, y = session._batch(session.order()[: session.batch_size])
    method = session.method
    assert isinstance(method, MultiTask)
    session.nets.f.eval()
    losses, terms = method.losses(session.nets, x, x, y, smoothing=0.0), method.outer(session.nets, x, x, y)
    assert terms["ce"].item() == pytest.approx(losses["main"].mean().item())
    assert terms["rotation"].item() == pytest.approx(0.25 * losses["rotation"].mean().item())
    session.nets.f.train()
    session.step(session.order())
    assert all((part.head.weight != before[name]).any() for name, part in session.nets.parts.items())  # type: ignore[union-attr]


def test_a_head_receives_gradients_of_its_own_task_only(recipe: Recipes, trained: Runs) -> None:
    session = trained(recipe("multi-task", "method.tasks=rotation,macro"), 1)
    x, y = session._batch(session.order()[: session.batch_size])
    terms = session.method.outer(session.nets, x, x, y)
    other = list(session.nets.parts["macro"].parameters())
    assert all(g is None for g in torch.autograd.grad(terms["rotation"], other, allow_unused=True, retain_graph=True))
    assert all(g is not None for g in torch.autograd.grad(terms["macro"], other))


def test_the_attack_on_the_sum_does_not_smooth_labels(recipe: Recipes, trained: Runs) -> None:
    session = trained(recipe("multi-task", "method.tasks=rotation", "method.attacked=sum", "label_smoothing=0.4"), 0)
    x, y = session._batch(session.order()[: session.batch_size])
    method, nets = session.method, session.nets
    assert isinstance(method, MultiTask)
    nets.f.eval()
    objective = method.inner(nets, x, y)
    assert objective is not None
    main, rotation = method.losses(nets, x, x, y, smoothing=0.0).values()
    assert torch.allclose(objective(x), main + rotation)
    smoothed = torch.nn.functional.cross_entropy(nets.f(x), y, label_smoothing=0.4)
    assert method.outer(nets, x, x, y)["ce"].item() == pytest.approx(smoothed.item())


def test_what_is_attacked(recipe: Recipes) -> None:
    assert make(recipe("multi-task")).inner(None, None, None) is None  # type: ignore[arg-type]
    assert make(recipe("multi-task-at")).attacked == "main"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("method.tasks=rotaton", "rotation"),
        ("method.tasks=rotation,rotation", "once"),
        ("method.tasks=", "at least one"),
        ("method.macro=0,1", "10 numbers"),
    ],
)
def test_bad_settings_are_refused_before_training(recipe: Recipes, setting: str, says: str) -> None:
    sets: list[Any] = [setting] if "tasks" in setting else [setting, "method.tasks=macro"]
    with pytest.raises(UserError, match=says):
        Session(recipe("multi-task", *sets), torch.device("cpu"))
