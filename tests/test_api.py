"""`import advbench`: the functions that notebooks use."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import advbench


@pytest.fixture(scope="module")
def net() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y = advbench.load_data("digits", "train").batch(slice(None))
    onto = nn.functional.one_hot(y, 10).float() - 0.1
    net[1].weight.data = torch.linalg.lstsq(
        x.flatten(1) + 1e-3 * torch.rand(len(x), 64, generator=generator), onto
    ).solution.T
    net[1].bias.data.zero_()
    return net.eval()


def test_everything_named_is_there() -> None:
    assert all(hasattr(advbench, name) for name in advbench.__all__)


def test_a_module_and_a_named_dataset(net: nn.Module) -> None:
    result = advbench.evaluate(net, "digits", attack="pgd", eps="0,0.1", n=40, settings={"steps": 5})
    record = result.record
    assert [point.eps_text for point in record.curve] == ["0", "0.1"]
    assert record.dataset.indices == "first:40" and record.clean > 0.7
    assert record.curve[1].accuracy < record.clean


def test_tensors_are_the_same_images(net: nn.Module) -> None:
    x, y = advbench.load_data("digits").batch(slice(0, 30))
    x = (x * 255).round() / 255
    floats = advbench.evaluate(net, (x, y), attack="fgsm", eps=[0.05])
    whole = advbench.evaluate(net, ((x * 255).round().to(torch.uint8).numpy(), y.numpy()), attack="fgsm", eps=[0.05])
    assert floats.record.id == whole.record.id
    assert floats.record.n == 30 and floats.record.dataset.indices == tuple(range(30))


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (torch.zeros(2, 8, 8), torch.zeros(2, dtype=torch.int64), "N, C, H, W"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64), "one for each"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), "whole numbers"),
        (torch.full((2, 1, 8, 8), 0.3001), torch.zeros(2, dtype=torch.int64), "multiples of 1/255"),
        (torch.full((2, 1, 8, 8), 2.0), torch.zeros(2, dtype=torch.int64), "in [0, 1]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int32), torch.zeros(2, dtype=torch.int64), "uint8"),
    ],
)
def test_tensors_that_are_no_images(net: nn.Module, x: torch.Tensor, y: torch.Tensor, reason: str) -> None:
    with pytest.raises(advbench.UserError) as raised:
        advbench.evaluate(net, (x, y), attack="fgsm", eps="0.1")
    assert reason in str(raised.value)


def test_attack_keeps_the_points(net: nn.Module) -> None:
    data = advbench.load_data("digits")
    result = advbench.attack(net, data.subset(range(20)), eps="0.1")
    assert result.points
    for row, point in result.points.items():
        x, y = data.batch(slice(row, row + 1))
        assert (point - x[0]).abs().max() <= 0.1 + 1e-6
        assert net(point[None]).argmax(1) != y


def test_a_run_by_its_folder_alone(tmp_path: Path) -> None:
    settings = {"train_n": 256, "validation.n": 32, "inner.steps": 1}
    run = advbench.train("pgd-at", arch="mlp", eps=0.1, epochs=1, settings=settings, device="cpu", out=tmp_path / "r")
    result = advbench.evaluate(str(run), attack="fgsm", n=20)
    assert [point.eps_text for point in result.record.curve][-1] == "0.2"
    assert advbench.load_model(str(run)).arch == "mlp"
    with pytest.raises(advbench.UserError, match="--resume"):
        advbench.train("pgd-at", arch="mlp", eps=0.1, epochs=1, settings=settings, device="cpu", out=run)


def test_a_module_needs_images(net: nn.Module) -> None:
    with pytest.raises(advbench.UserError, match="which images"):
        advbench.evaluate(net)


def test_arguments_of_train_that_are_not_given_leave_settings_and_config_alone(tmp_path: Path) -> None:
    """They used to overwrite both with their defaults."""
    how: dict[str, Any] = {"dataset": "digits", "arch": "linear", "eps": "0.1", "device": "cpu"}
    short = {"train_n": 64, "validation.n": 16, "epochs": 2, "seed": 3}
    first = advbench.train("standard", settings=short, out=tmp_path / "first", **how)
    again = advbench.train("standard", config=first / "recipe.toml", out=tmp_path / "again", device="cpu")
    for run in (first, again):
        recipe = tomllib.loads((run / "recipe.toml").read_text())
        assert (recipe["epochs"], recipe["seed"]) == (2, 3)
