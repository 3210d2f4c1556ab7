"""Flags on nets that people really evaluate: wrong scales and class orders, black boxes, large or shifted logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from defences import Around, Function, fitted
from torch import Tensor, nn

import advbench
from advbench.data.dataset import Dataset
from advbench.data.tensors import from_tensors
from advbench.evaluator import Evaluation
from advbench.record import Flag

GRADIENTS = ["apgd-ce", "apgd-t"]
PERMUTED = torch.tensor([3, 7, 1, 9, 0, 5, 8, 2, 6, 4])
Flags = dict[str, Flag]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return fitted("robust 1")


def evaluated(net: nn.Module, data: Any = "digits", **how: Any) -> Evaluation:
    return advbench.evaluate(
        net, data, **{"attack": "fgsm", "eps": ["0", "0.1"], "device": "cpu", "processes": 1, **how}
    )


def flags(result: Evaluation) -> Flags:
    return {flag.name: flag for flag in result.record.flags}


def doubts(result: Evaluation) -> dict[str, str]:
    return {flag.name: flag.severity for flag in result.record.flags if flag.severity != "note"}


def robust(result: Evaluation) -> list[int]:
    return [point.robust for point in result.record.curve]


# The subject


def test_a_net_fed_another_scale_is_at_chance(net: nn.Module) -> None:
    found = flags(evaluated(Around(net, before=lambda x: x / 255), n=200))
    assert found["at-chance"].severity == "suspect"
    assert "class-order" not in found
    assert "normalisation" in found["at-chance"].detail or "scale" in found["at-chance"].detail


def test_a_net_with_its_classes_in_another_order_is_named(net: nn.Module) -> None:
    found = flags(evaluated(Around(net, after=lambda z: z[:, PERMUTED]), n=200))
    assert found["at-chance"].severity == found["class-order"].severity == "suspect"
    assert "class order" in found["at-chance"].detail


def test_a_net_that_learnt_is_neither(net: nn.Module) -> None:
    assert not flags(evaluated(net, n=200)).keys() & {"at-chance", "class-order", "constant"}


class Always(nn.Module):
    """One class for all images, with some logits of `net` beneath, so that there are gradients."""

    def __init__(self, net: nn.Module, answer: int, classes: int) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("bonus", 50.0 * torch.eye(classes)[answer])

    def forward(self, x: Tensor) -> Tensor:
        return 0.01 * self.net(x) + self.bonus  # type: ignore[no-any-return]


def mostly_threes() -> Dataset:
    """100 digits, of which about 92 are labelled 3."""
    data = advbench.load_data("digits").subset(range(100))
    threes = torch.rand(100, generator=torch.Generator().manual_seed(0)) < 0.9
    return replace(data, labels=torch.where(threes, 3, data.labels))


def mostly_zeros() -> Dataset:
    """300 noisy colour pictures of two classes, nine tenths of class 0."""
    x = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    return from_tensors(x, (np.arange(300) % 10 == 0).astype(int))


@pytest.mark.parametrize(
    ("make", "data", "attack"),
    [
        (lambda: Always(fitted("robust 1"), 3, 10), mostly_threes, GRADIENTS),
        (lambda: Always(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 0, 2), mostly_zeros, ["pgd"]),
    ],
    ids=["ten classes", "two classes"],
)
def test_a_net_with_one_answer_is_constant(
    make: Callable[[], nn.Module], data: Callable[[], Dataset], attack: list[str]
) -> None:
    result = evaluated(make().eval(), data(), attack=attack)
    assert min(robust(result)) == max(robust(result)) > 0.8 * len(result.fates)
    found = flags(result)
    assert found["constant"].severity == "broken" and found["at-chance"].severity == "suspect"


def test_one_answer_is_right_where_all_images_are_of_one_class(net: nn.Module) -> None:
    data = advbench.load_data("digits")
    _, y = data.batch(slice(None))
    fives = data.subset((y == 5).nonzero()[:, 0][:64])
    assert not flags(evaluated(net, fives)).keys() & {"constant", "at-chance", "class-order"}


# No false alarms


class BlackBox(nn.Module):
    """`net` behind numpy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.from_numpy(self.net(x.detach()).numpy().copy())


@pytest.mark.usefixtures("whole_probes")
def test_a_black_box_under_a_black_box_attack_has_its_twins_verdicts(net: nn.Module) -> None:
    how: dict[str, Any] = {"attack": "square", "settings": {"n_queries": 200}, "n": 64}
    box, twin = evaluated(BlackBox(net), **how), evaluated(net, **how)
    assert doubts(box) == {}
    assert (box.fates.fell != twin.fates.fell).sum() <= 1  # rounding may decide one


@pytest.mark.usefixtures("whole_probes")
def test_large_logits_are_no_fault_where_a_loss_does_not_mind(net: nn.Module) -> None:
    how: dict[str, Any] = {"attack": GRADIENTS, "eps": ["0", "0.1"], "n": 64}
    curves = []
    for factor in (1, 30, 1000):
        result = evaluated(Around(net, after=lambda z, factor=factor: z * factor), **how)  # type: ignore[misc]
        assert doubts(result) == {}, factor
        curves.append(robust(result))
    assert all(abs(a - b) <= 1 for curve in curves for a, b in zip(curve, curves[0], strict=True)), curves


def test_large_logits_are_flagged_under_a_loss_that_does(net: nn.Module) -> None:
    assert doubts(evaluated(Around(net, after=lambda z: z * 1000), attack="pgd", eps=["0", "0.05", "0.1"], n=64))


def one_hot(z: Tensor) -> Tensor:
    return nn.functional.one_hot(z.argmax(1), 10).float()


@pytest.mark.parametrize("after", [lambda z: z + 1e6, one_hot], ids=["logits + 1e6", "one-hot"])
def test_what_is_not_a_probability(after: Function, net: nn.Module) -> None:
    assert "probabilities" not in flags(evaluated(Around(net, after=after), n=64))


def test_one_hot_answers_have_no_gradient(net: nn.Module) -> None:
    assert "zero-gradient" in doubts(evaluated(Around(net, after=one_hot), n=64))


@pytest.mark.parametrize("rounding", [torch.round, torch.floor], ids=["round", "floor"])
def test_inputs_of_five_levels_are_not_memorised(rounding: Function, net: nn.Module) -> None:
    assert "memorised" not in flags(evaluated(Around(net, before=lambda x: rounding(4 * x) / 4), n=64))


@pytest.mark.parametrize(
    "after",
    [torch.relu, lambda z: z.clamp(-1, 1), lambda z: torch.tanh(20 * z), lambda z: torch.sigmoid(40 * z)],
    ids=["relu", "clamp", "tanh", "sigmoid"],
)
def test_clipped_logits_are_noted(after: Function, net: nn.Module) -> None:
    assert "clipped" in flags(evaluated(Around(net, after=after), n=64))


@pytest.mark.parametrize("after", [lambda z: z, lambda z: z.log_softmax(1), lambda z: z - 50])
def test_other_logits_are_not_called_clipped(after: Function, net: nn.Module) -> None:
    assert "clipped" not in flags(evaluated(Around(net, after=after), n=64))
