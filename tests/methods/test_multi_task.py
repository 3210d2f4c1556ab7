"""The tasks by hand on real digits, who learns from what, and the limits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn

from advbench.data import load
from advbench.errors import UserError
from advbench.methods.base import make
from advbench.methods.multi_task import MultiTask
from advbench.models.tasks import NAMES, Autoencoder, Jigsaw, Macro, Rotation, make_tasks
from advbench.recipe import Recipe
from advbench.rng import keys
from advbench.trainer.session import Session

Recipes = Callable[..., Recipe]
Runs = Callable[..., Session]


def digits(n: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    data = load("digits", "train").subset(range(n))
    return (*data.batch(slice(None)), keys(0, "test", data.indices))


def test_rotation_turns_each_image_by_its_target() -> None:
    x, y, key = digits()
    task = Rotation()
    turns, seen = task.target(x, y, key), task.view(x, key)
    assert set(turns.tolist()) == {0, 1, 2, 3}
    assert all(torch.equal(seen[i], torch.rot90(x[i], int(turns[i]), (1, 2))) for i in range(len(x)))


def test_jigsaw_puts_the_quarters_in_the_order_of_its_target() -> None:
    x, y, key = digits()
    task, orders = Jigsaw(), list(permutations(range(4)))
    quarters = [(slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)) for row in (0, 1) for column in (0, 1)]
    seen, targets = task.view(x, key), task.target(x, y, key).tolist()
    assert len(set(targets)) > 10
    for i, target in enumerate(targets):
        for place, tile in zip(quarters, orders[target], strict=True):
            assert torch.equal(seen[i, 0][place], x[i, 0][quarters[tile]])


def test_macro_labels_and_reconstruction() -> None:
    x, y, key = digits()
    round_digits = torch.tensor([label in (0, 6, 8, 9) for label in y.tolist()])
    tasks = make_tasks(("macro", "autoencoder"), "digits", 10)
    assert isinstance(tasks["macro"], Macro) and isinstance(tasks["autoencoder"], Autoencoder)
    assert torch.equal(tasks["macro"].target(x, y, key).bool(), round_digits)
    target = tasks["autoencoder"].target(x, y, key)
    assert tasks["autoencoder"].error(target, target).max() == 0
    assert tasks["autoencoder"].error(target + 0.5, target).tolist() == pytest.approx([0.25] * len(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_of_one_sample_does_not_depend_on_the_others(name: str) -> None:
    x, y, key = digits()
    task = make_tasks((name,), "digits", 10)[name]
    assert torch.equal(task.view(x, key)[3:5], task.view(x[3:5], key[3:5]))
    assert torch.equal(task.target(x, y, key)[3:5], task.target(x[3:5], y[3:5], key[3:5]))


@pytest.mark.parametrize("name", NAMES)
def test_each_task_has_a_gradient_by_the_image(name: str) -> None:
    x, y, key = digits()
    task = make_tasks((name,), "digits", 10)[name]
    z = x.clone().requires_grad_()
    head = task.head(64, (1, 8, 8))
    task.loss(head(task.view(z, key).flatten(1)), task.target(x, y, key)).sum().backward()
    assert z.grad is not None and (z.grad.flatten(1).abs().sum(1) > 0).all()


def test_weight_zero_trains_the_net_as_the_base_does(
    recipe: Recipes, trained: Runs, same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    """macro and autoencoder need no further pass, so that not even BatchNorm can tell."""
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
    losses, terms = method.losses(session.nets, x, x, y), method.outer(session.nets, x, x, y)
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
    with pytest.raises(UserError, match="superclasses"):
        make_tasks(("macro",), "svhn", 10)
    with pytest.raises(UserError, match="even"):
        Jigsaw().check((1, 7, 7))
