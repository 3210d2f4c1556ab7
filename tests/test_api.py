"""`import advbench`: the functions that notebooks use."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import data as torch_data

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
        (torch.zeros(2, 64), torch.zeros(2, dtype=torch.int64), "N, C, H, W"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64), "one for each"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), "whole numbers"),
        (torch.full((2, 1, 8, 8), 2.0), torch.zeros(2, dtype=torch.int64), "in [0, 1]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int32), torch.zeros(2, dtype=torch.int64), "uint8"),
    ],
)
def test_tensors_that_are_no_images(net: nn.Module, x: torch.Tensor, y: torch.Tensor, reason: str) -> None:
    with pytest.raises(advbench.UserError) as raised:
        advbench.evaluate(net, (x, y), attack="fgsm", eps="0.1")
    assert reason in str(raised.value)


@pytest.mark.parametrize("n", [0, -1, 1.5, "8", True])
def test_a_number_of_images_that_is_none(net: nn.Module, n: Any) -> None:
    """0 used to mean the default."""
    with pytest.raises(advbench.UserError, match="choose at least 1 image"):
        advbench.evaluate(net, "digits", attack="fgsm", eps="0.1", n=n)


def test_a_model_with_more_classes_than_the_labels_show(net: nn.Module) -> None:
    """A small sample often lacks the last class; it was refused."""
    x, y = advbench.load_data("digits").batch(slice(0, 60))
    x, y = x[y < 9], y[y < 9]
    how: dict[str, Any] = {"attack": "fgsm", "eps": ["0"]}
    accuracy = float((net(x).argmax(1) == y).double().mean())
    assert accuracy > 0.7
    assert advbench.evaluate(net, (x, y), **how).record.clean == pytest.approx(accuracy)
    assert advbench.evaluate(net, (x, y), num_classes=10, **how).record.clean == pytest.approx(accuracy)
    with pytest.raises(advbench.UserError, match="the model has 10 classes, tensors has 11"):
        advbench.evaluate(net, (x, y), num_classes=11, **how)
    with pytest.raises(advbench.UserError, match="leave out num_classes"):
        advbench.evaluate(net, "digits", num_classes=10, **how)
    with pytest.raises(advbench.UserError, match="digits says what its classes are: leave out class_names"):
        advbench.evaluate(net, advbench.load_data("digits"), class_names="0123456789", **how)


def test_the_images_of_a_dataset_are_the_dataset(net: nn.Module) -> None:
    """Floats that are no multiples of 1/255 were refused, those of digits among them."""
    data = advbench.load_data("digits").subset(range(60))
    how: dict[str, Any] = {"attack": "pgd", "eps": ["0", "0.05", "0.1"], "settings": {"steps": 5}}
    named, floats = advbench.evaluate(net, data, **how), advbench.evaluate(net, data.batch(slice(None)), **how)
    assert floats.fates.fell.tolist() == named.fates.fell.tolist()


def test_the_points_of_an_attack_are_data_for_another_model(net: nn.Module) -> None:
    data = advbench.load_data("digits").subset(range(40))
    found = advbench.attack(net, data, eps="0.15").points
    x, y = torch.stack(list(found.values())), data.labels[list(found)]
    other = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), net)
    for model in (net, other):
        result = advbench.evaluate(model, (x, y), attack="fgsm", eps=["0"])
        assert result.record.n == len(found) > 20
        assert result.record.clean == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert advbench.evaluate(net, (x, y), attack="fgsm", eps=["0"]).record.clean == 0


@pytest.mark.parametrize("form", ["TensorDataset", "DataLoader", "shuffled", "list"])
def test_the_forms_that_data_have_in_pytorch(net: nn.Module, form: str) -> None:
    x, y = advbench.load_data("digits").batch(slice(0, 30))
    pairs = torch_data.TensorDataset(x, y)
    data = {
        "TensorDataset": pairs,
        "DataLoader": torch_data.DataLoader(pairs, batch_size=7),
        "shuffled": torch_data.DataLoader(pairs, batch_size=7, shuffle=True, drop_last=True),
        "list": list(zip(x, y, strict=True)),
    }[form]
    how: dict[str, Any] = {"attack": "fgsm", "eps": [0.05]}
    wanted, result = advbench.evaluate(net, (x, y), **how), advbench.evaluate(net, data, **how)
    assert result.record.dataset.images_sha256 == wanted.record.dataset.images_sha256
    assert result.fates.fell.tolist() == wanted.fates.fell.tolist()


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
