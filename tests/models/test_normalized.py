"""Normalisation in front of a network: how it is written, where it is refused, and that it is not among the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.checkpoint import load_model, save_weights
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.evaluator import bare
from advbench.models import build
from advbench.models.base import STATISTICS
from advbench.models.normalized import Normalized, by_channel, normalises, parse_statistics


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(8))


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [
        (None, None, None),
        ("0.5", "0.25", ((0.5,), (0.25,))),
        ("0.1, 0.2,0.3", "1,2,3", ((0.1, 0.2, 0.3), (1, 2, 3))),
        (0.5, [0.25], ((0.5,), (0.25,))),
        ((0.1, 0.2, 0.3), torch.tensor([1.0, 2.0, 3.0]), ((0.1, 0.2, 0.3), (1, 2, 3))),
        ("half", None, ((0.5,), (0.5,))),
        (None, "imagenet", STATISTICS["imagenet"]),
        ("imagenet", "1", (STATISTICS["imagenet"][0], (1,))),
        *((name, None, statistics) for name, statistics in STATISTICS.items()),
    ],
)
def test_the_ways_to_write_it(mean: Any, std: Any, found: Any) -> None:
    assert parse_statistics(mean, std) == found


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ("imagnet", None, "names .*imagenet.*half"),
        ("0.5", None, "--mean without --std"),
        (None, "0.5", "--std without --mean"),
        ("0.5,x", "1", "--mean '0.5,x': write a number"),
        ("", "1", "--mean"),
        ("nan", "1", "--mean 'nan': write a number"),
        ([], "1", "--mean"),
        (object(), "1", "--mean"),
        ("0", "0", "--std '0': standard deviations are above 0"),
        ("0", "1,-1", "above 0"),
        ("0", "inf", "--std 'inf': write a number"),
    ],
)
def test_what_is_written_wrongly_is_one_line(mean: Any, std: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_statistics(mean, std)
    assert "\n" not in str(caught.value)


def test_one_number_stands_for_all_channels() -> None:
    assert by_channel("--mean", (0.5,), 3) == (0.5, 0.5, 0.5) and by_channel("--mean", (1, 2, 3), 3) == (1, 2, 3)
    with pytest.raises(UserError, match="--mean has 3 numbers, but the images have 1 channel: give one"):
        by_channel("--mean", (1, 2, 3), 1)


def test_the_formula_and_what_others_read_of_a_network(digits: Dataset) -> None:
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0)
    x, _ = digits.batch(slice(None))
    front = Normalized(net, (0.3,), (0.4,))
    assert torch.equal(front(x), net((x - torch.tensor(0.3)) / torch.tensor(0.4)))
    assert (front.arch, front.settings, front.in_channels) == (net.arch, net.settings, 1)
    assert normalises(front) and not normalises(net)
    assert normalises(nn.Sequential(build("mlp", num_classes=10, in_channels=1, image_size=8, normalize="digits")))


def test_a_loaded_model_with_it_has_the_same_weights_and_other_answers(tmp_path: Path, digits: Dataset) -> None:
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0).eval()
    file = tmp_path / "net.safetensors"
    save_weights(net, file)
    plain, front = (load_model(str(file), dataset=digits, **how) for how in ({}, {"mean": "digits"}))
    assert (front.mean, front.std) == STATISTICS["digits"] and (plain.mean, plain.std) == (None, None)
    assert front.weights_sha256 == plain.weights_sha256
    x, _ = digits.batch(slice(None))
    assert torch.allclose(front.net(x), net((x - 0.3053) / 0.3760), atol=1e-4) and not front.net.training
    spelled = load_model(str(file), mean=0.3053, std="0.376")  # without images, by the network's channels
    assert (spelled.mean, spelled.std) == (front.mean, front.std)


def test_it_is_refused_where_it_would_be_applied_twice(tmp_path: Path, digits: Dataset) -> None:
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, normalize="digits", seed=0)
    file = tmp_path / "net.safetensors"
    save_weights(net, file)
    for refused in (
        lambda: load_model(str(file), dataset=digits, mean="half"),
        lambda: load_model("torchvision:resnet18:random", mean="imagenet"),
        lambda: bare(nn.Flatten(), digits).read_as(mean="half").read_as(mean="half"),
    ):
        with pytest.raises(UserError, match="normalises its images itself: leave out --mean and --std"):
            refused()


class Normalize(nn.Module):
    """As torchvision has it."""

    mean, std = 0.5, 0.5

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def test_a_layer_that_normalises_is_pointed_out() -> None:
    net = nn.Sequential(Normalize(), nn.Flatten(), nn.Linear(64, 10))
    found = advbench.evaluate(net, "digits", eps=[0, 0.1], attack="fgsm", n=20, mean=0.5, std=0.5)
    notes = [flag.detail for flag in found.record.flags if flag.name == "model"]
    assert "it has a layer Normalize of its own: are its images normalised twice?" in notes


def test_a_network_in_train_mode_stays_in_it_and_is_flagged() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).train()
    found = advbench.evaluate(net, "digits", eps=[0, 0.1], attack="fgsm", n=20, mean=0.3, std=0.4)
    assert all(part.training for part in net.modules())
    assert "train-mode" in {flag.name for flag in found.record.flags}


@pytest.mark.parametrize(
    ("normalize", "message"),
    [
        ([[float("nan")], [1.0]], r"the means \[nan\]: they must be finite"),
        ([[0.5], [float("nan")]], r"the deviations \[nan\]: they must be above 0 and finite"),
        ([[0.5], [float("inf")]], r"the deviations \[inf\]: they must be above 0 and finite"),
        ([[0.5], [0.0]], r"the deviations \[0.0\]: they must be above 0 and finite"),
    ],
)
def test_statistics_are_finite(normalize: list[list[float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("mlp", num_classes=10, in_channels=1, image_size=8, normalize=normalize)
