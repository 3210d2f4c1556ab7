"""The tasks by hand on real digits; the heads that answer them."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from advbench.checkpoint import weights_sha256
from advbench.data import load
from advbench.errors import UserError
from advbench.models import build
from advbench.models.tasks import (
    NAMES,
    Autoencoder,
    Jigsaw,
    Macro,
    Rotation,
    answers,
    losses,
    make_heads,
    make_tasks,
    sample_key,
)
from advbench.rng import keys


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


def test_losses_are_those_of_the_answers_to_what_each_task_shows() -> None:
    x, y, _ = digits(8)
    key = sample_key(3, torch.arange(8))
    f = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0).eval()
    heads = make_heads(make_tasks(NAMES, "digits", 10), f.feature_dim, (1, 8, 8), seed=1)
    z = (x + 0.1).clamp(0, 1)
    found = losses(answers(f, heads, z, key), heads, x, y, key)
    assert list(found) == ["main", *NAMES]
    assert torch.equal(found["main"], torch.nn.functional.cross_entropy(f(z), y, reduction="none"))
    square = (heads["autoencoder"](f.features(z)) - x.flatten(1)).square().mean(1)  # of the clean image
    assert torch.equal(found["autoencoder"], square)
    part = {"rotation": heads["rotation"]}
    alone = losses(answers(f, part, z, key), part, x, y, key)["rotation"]
    assert torch.equal(alone, found["rotation"])  # a task draws the same, whatever the other tasks are


def test_the_hash_of_a_head_tells_superclasses_apart() -> None:
    groups = ([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    heads = [make_heads({"macro": Macro(one)}, 5, (1, 8, 8), seed=0)["macro"] for one in groups]
    one, other, again = map(weights_sha256, heads)
    assert one == again != other
    assert set(heads[0].state_dict()) == {"head.weight", "head.bias"}  # they are no weights, and not saved


def test_unknown_superclasses_and_odd_sides_are_refused() -> None:
    with pytest.raises(UserError, match="superclasses"):
        make_tasks(("macro",), "svhn", 10)
    with pytest.raises(UserError, match="even"):
        Jigsaw().check((1, 7, 7))
