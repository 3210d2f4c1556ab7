"""Flags on the subject, on simulated answers: what cannot classify is named, and what can is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from advbench.checkpoint import Loaded
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.evaluator import subject
from advbench.models import robustbench_zoo


def answers(accuracy: float, labels: np.ndarray, classes: int, draw: np.random.Generator) -> np.ndarray:
    """Right with probability `accuracy`, else any class."""
    return np.where(draw.random(len(labels)) < accuracy, labels, draw.integers(0, classes, len(labels)))


@pytest.mark.parametrize(("classes", "n"), [(2, 100), (10, 100), (10, 1000), (100, 1000), (1000, 1000)])
def test_guessing_is_at_chance_and_knowing_is_not(classes: int, n: int) -> None:
    draw, guessed, knew = np.random.default_rng(0), 0, 0
    for _ in range(200):
        labels = draw.integers(0, classes, n)
        guessed += bool(subject.at_chance(draw.integers(0, classes, n), labels))
        knew += bool(subject.at_chance(answers(0.6, labels, classes, draw), labels))
    assert guessed >= 180 and knew == 0


def test_one_class_present_is_never_at_chance() -> None:
    assert subject.at_chance(np.zeros(50, np.int64), np.ones(50, np.int64)) == []


def test_always_the_majority_is_at_chance_and_constant() -> None:
    labels = (np.arange(300) % 10 == 0).astype(np.int64)
    constant = np.zeros(300, np.int64)
    assert [flag.severity for flag in subject.at_chance(constant, labels)] == ["suspect"]
    (flag,) = subject.constant(constant, labels)
    assert (flag.severity, flag.k, flag.n) == ("broken", 300, 300)
    assert subject.constant(constant, np.zeros(300, np.int64)) == []  # all images are of that class
    assert subject.constant(constant[:3], labels[8:11]) == []  # three images may well be answered alike


@pytest.mark.parametrize(
    ("classes", "n", "accuracy"), [(10, 64, 0.7), (10, 200, 0.5), (100, 100, 0.7), (1000, 1000, 0.6)]
)
def test_honest_errors_are_no_other_class_order(classes: int, n: int, accuracy: float) -> None:
    draw = np.random.default_rng(1)
    for _ in range(50):
        labels = draw.integers(0, classes, n)
        assert subject.class_order(answers(accuracy, labels, classes, draw), labels, classes) == []


@pytest.mark.parametrize("moved", [2, 10])
def test_another_class_order_is_named(moved: int) -> None:
    draw = np.random.default_rng(2)
    labels = draw.integers(0, 10, 200)
    order = np.r_[np.roll(np.arange(moved), 1), np.arange(moved, 10)]
    (flag,) = subject.class_order(order[answers(0.95, labels, 10, draw)], labels, 10)
    assert flag.severity == "suspect" and "another order" in flag.detail


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test")


@pytest.mark.parametrize(("right", "flagged"), [(471, False), (462, False), (460, False), (430, True), (498, True)])
def test_a_published_model_without_its_accuracy_is_suspect(right: int, flagged: bool, digits: Dataset) -> None:
    """94.78 % are published of RobustBench's Standard; here 94.2, 92.4, 92.0, 86.0 and 99.6 % of 500."""
    loaded = Loaded(nn.Identity(), "robustbench:Standard", "x", "0" * 64, None, 10, (), "cifar10")
    data = replace(digits, name="cifar10")
    found = subject.published(loaded, np.arange(500) < right, data)
    assert [flag.name for flag in found] == (["published"] if flagged else [])
    assert subject.published(loaded, np.arange(500) < right, digits) == []  # on other data nothing is published


def test_every_published_accuracy_belongs_to_a_model() -> None:
    table = json.loads((Path(robustbench_zoo.__file__).parent / "robustbench_clean.json").read_text())
    models = {f"{model.dataset}/{model.threat}/{model.name}": model for model in robustbench_zoo.zoo()}
    assert table.keys() <= models.keys() and all(50 < percent <= 100 for percent in table.values())
    standard = models["cifar10/Linf/Standard"]
    assert robustbench_zoo.published_accuracy(standard) == pytest.approx(0.9478)


def test_probabilities_and_labels_are_told_from_logits() -> None:
    z = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    one_hot = nn.functional.one_hot(z.argmax(1), 10).float()
    assert subject.are_probabilities(z.softmax(1)) and subject.are_probabilities(100 * z.softmax(1))
    for logits in (z, z + 1e6, z.abs(), one_hot, 30 * one_hot, torch.ones(5, 10)):
        assert not subject.are_probabilities(logits)
    for row in z.abs():  # of one image the sum tells nothing, unless it is 1
        assert not subject.are_probabilities(row[None]) and subject.are_probabilities(row[None].softmax(1))
    assert subject.are_labels(one_hot) and subject.are_labels(5 + one_hot)
    assert not subject.are_labels(z) and not subject.are_labels(z.softmax(1))
