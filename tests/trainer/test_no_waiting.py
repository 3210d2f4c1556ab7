"""A training step on CUDA neither waits for the device nor copies from the host: proved without a card.

The step runs on the fake tensors of `fake_cuda`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda import Watched, needed, zero_gradients
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from advbench.data.dataset import Dataset
from advbench.recipe import Recipe
from advbench.registry import entries
from advbench.trainer import session as sessions
from advbench.trainer.session import Session

pytestmark = needed
BATCH = 8
SHORT = ["compile=off", "precision=fp32", "inner.steps=2", "validation.fraction=0", f"batch_size={BATCH}"]


def move(net: nn.Module, fake: Callable[[Tensor], Tensor]) -> None:
    """Give a net fake weights and buffers; weights that modules share stay shared."""
    moved: dict[int, nn.Parameter] = {}
    for module in net.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                again = nn.Parameter(fake(weight), requires_grad=weight.requires_grad)
                module._parameters[name] = moved.setdefault(id(weight), again)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)


def waits_of(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What waits in the second step of a training on a fake card; the first makes tables and the optimiser's state."""
    labels = torch.arange(4 * BATCH) % 10
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    data = Dataset.whole(images, labels, name="cifar10", split="train", num_classes=10)
    monkeypatch.setattr(sessions, "images", lambda recipe, device: (data, None, "hash"))
    fused = sessions.optimizer
    monkeypatch.setattr(  # the fused kernels look for a driver
        sessions, "optimizer", lambda settings, weights, device: fused(settings, weights, torch.device("cpu"))
    )
    monkeypatch.setattr(torch.optim.Optimizer, "_cuda_graph_capture_health_check", lambda self: None)
    session = Session(recipe, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, zero_gradients(monkeypatch) as given:

        def fake(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return mode.from_tensor(value.detach(), static_shapes=True).to("cuda")

        nets = [session.nets.f, *session.nets.parts.values(), *([session.averaged.net] if session.averaged else [])]
        for net in nets:
            move(net, fake)
        session.device, session.bad_batch = torch.device("cuda:0"), fake(session.bad_batch)
        session.data = Dataset.__new__(Dataset)
        for name, value in vars(data).items():
            object.__setattr__(session.data, name, fake(value))
        session.tools.optimizers = session._optimizers()
        session.base_lr = {name: one.param_groups[0]["lr"] for name, one in session.tools.optimizers.items()}

        def to_weights() -> None:
            for one in session.tools.optimizers.values():
                for weight in (weight for group in one.param_groups for weight in group["params"]):
                    weight.grad = torch.zeros_like(weight)

        given.append(to_weights)
        order = fake(torch.arange(len(labels)))
        session.step(order)
        with Watched() as seen:
            session.step(order)
    return seen.waits


@pytest.mark.parametrize("method", sorted(set(entries("methods")) - {"free-at"}))  # which reads x.grad of `backward`
def test_no_step_of_a_method_waits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.resolve(method=method, dataset="cifar10", arch="small_cnn", sets=SHORT)
    assert waits_of(recipe, monkeypatch) == []


@pytest.mark.parametrize(
    "settings",
    [
        ["augment.policy=autoaugment", "augment.cutout=8", "optim.clip=1", "average.name=swa", "label_smoothing=0.1"],
        ["awp.gamma=0.005", "average.name=ema", "bn=sync"],
        ["optim.name=coordinate-descent", "optim.momentum=0", "optim.weight_decay=0"],
        ["optim.name=fista"],
        ["optim.name=adamw"],
    ],
)
def test_no_step_of_a_recipe_waits(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.resolve(method="pgd-at", dataset="cifar10", arch="small_cnn", sets=[*SHORT, *settings])
    assert waits_of(recipe, monkeypatch) == []


def test_what_waits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above could not fail."""
    recipe = Recipe.resolve(method="standard", dataset="cifar10", arch="small_cnn", sets=SHORT)
    batch = Session._batch

    def copies(self: Session, rows: Tensor) -> Any:
        torch.zeros(3).to(self.device)
        return batch(self, rows)

    monkeypatch.setattr(Session, "_batch", copies)
    assert waits_of(recipe, monkeypatch) == ["_to_copy between host and device"]
