"""Flags on the subject of an evaluation: whether the model, as it was given, can classify these images at all."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from advbench.checkpoint import Loaded
from advbench.data.dataset import Dataset
from advbench.models import robustbench_zoo
from advbench.record import Flag
from advbench.statistics import wilson

CONSTANT = 0.99  # share of equal answers
MIN_IMAGES = 10  # fewer may well be answered alike
CLASS_ORDER_GAIN, CLASS_ORDER_ACCURACY, CLASS_ORDER_IMAGES = 0.1, 0.5, 64
PUBLISHED_DIFFERENCE, PUBLISHED_LEVEL = 0.02, 0.999
CLIPPED = 0.02  # share of the logits that are exactly the largest, or the smallest, of all


def subject(loaded: Loaded, logits: Tensor, data: Dataset) -> list[Flag]:
    """The flags on clean `logits` (n, K) for `data`: at-chance, constant, class-order, published.

    A rejection is an answer too, but no class that could have another's name.
    """
    answers, labels = logits.argmax(1).cpu().numpy(), data.labels.cpu().numpy()
    classes = logits[:, : data.num_classes].argmax(1).cpu().numpy()
    return [
        *at_chance(answers, labels),
        *constant(answers, labels),
        *class_order(classes, labels, data.num_classes),
        *published(loaded, answers == labels, data),
    ]


class Balanced(NamedTuple):
    """The mean over the classes present of each one's accuracy, and the low end of its 95 % interval."""

    accuracy: float
    low: float
    classes: int


def balanced_accuracy(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> Balanced:
    """Balanced accuracy; its interval takes each class to have the same accuracy (normal approximation)."""
    present, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    right = np.bincount(place, weights=answers == labels)
    k = len(present)
    accuracy = float((right / counts).mean())
    p = max(accuracy, 1 / k)
    half = 1.96 * math.sqrt(p * (1 - p) * float((1 / counts).sum())) / k
    return Balanced(accuracy, accuracy - half, k)


def at_chance(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> list[Flag]:
    """Suspect where the clean balanced accuracy cannot be told from guessing; with one class present, never."""
    found = balanced_accuracy(answers, labels)
    if found.classes < 2 or found.low > 1 / found.classes:
        return []
    detail = (
        f"clean accuracy is {np.mean(answers == labels):.1%}, balanced over the {found.classes} classes "
        f"{found.accuracy:.1%}: no better than guessing. Is the input normalised and scaled as in training (--mean, "
        "--std; images are in [0, 1]), is the class order that of the data, are the labels right?"
    )
    k, n = int((answers == labels).sum()), len(labels)
    return [Flag(name="at-chance", severity="suspect", k=k, n=n, detail=detail)]


def constant(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> list[Flag]:
    """Broken where nearly all answers are one class, although nearly all images are not."""
    n = len(labels)
    kinds, counts = np.unique(answers, return_counts=True)
    most = int(counts.max())
    if n < MIN_IMAGES or most < CONSTANT * n or np.unique(labels, return_counts=True)[1].max() >= CONSTANT * n:
        return []
    detail = f"the model answers class {kinds[counts.argmax()]} on {most / n:.1%} of the clean images"
    return [Flag(name="constant", severity="broken", k=most, n=n, detail=detail)]


def class_order(answers: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> list[Flag]:
    """Suspect where renaming the classes would make the model much more accurate.

    The names are found on every other image and judged on the rest, because they fit the images that they are found on.
    """
    from scipy.optimize import linear_sum_assignment

    size = max(classes, int(labels.max()) + 1)
    if len(labels) < CLASS_ORDER_IMAGES or size > len(labels):
        return []
    confusion = np.zeros((size, size), dtype=np.int64)
    np.add.at(confusion, (labels[::2], answers[::2]), 1)
    np.fill_diagonal(confusion, 2 * confusion.diagonal() + 1)  # in doubt a class keeps its name
    _, renamed = linear_sum_assignment(confusion, maximize=True)
    n = len(labels[1::2])
    best, now = int((renamed[labels[1::2]] == answers[1::2]).sum()), int((labels[1::2] == answers[1::2]).sum())
    if best - now < CLASS_ORDER_GAIN * n or best < CLASS_ORDER_ACCURACY * n:
        return []
    swapped = [f"{label} as {answer}" for label, answer in enumerate(renamed) if label != answer]
    detail = (
        f"clean accuracy is {now / n:.1%} on {n} images, but {best / n:.1%} if classes are renamed (it answers class "
        f"{', '.join(swapped[:5])}{', ...' if len(swapped) > 5 else ''}): its classes are in another order"
    )
    return [Flag(name="class-order", severity="suspect", k=best - now, n=n, detail=detail)]


def published(loaded: Loaded, correct: NDArray[np.bool_], data: Dataset) -> list[Flag]:
    """Suspect where a RobustBench model has not the clean accuracy that RobustBench publishes for it."""
    kind, _, name = loaded.spec.partition(":")
    if kind != "robustbench" or data.name != loaded.dataset:
        return []
    model, _ = robustbench_zoo.choose(name, data.name)
    expected = robustbench_zoo.published_accuracy(model)
    k, n = int(correct.sum()), len(correct)
    low, high = wilson(k, n, PUBLISHED_LEVEL)
    if expected is None or abs(k / n - expected) <= PUBLISHED_DIFFERENCE or low <= expected <= high:
        return []
    detail = f"clean accuracy is {k / n:.1%}, RobustBench publishes {expected:.2%}: other weights, images or inputs?"
    return [Flag(name="published", severity="suspect", k=k, n=n, detail=detail)]


def are_labels(logits: Tensor) -> bool:
    """Whether every row (K,) is one class against all others: two values, the larger one once."""
    high, low = logits.amax(1, keepdim=True), logits.amin(1, keepdim=True)
    return bool((((logits == high).sum(1) == 1) & ((logits == high) | (logits == low)).all(1)).all())


def are_probabilities(logits: Tensor) -> bool:
    """Whether the rows are probabilities or a fixed multiple of them (a single row: probabilities), no mere labels."""
    total, spread = logits.double().sum(1), float(logits.max() - logits.min())
    low = float(total.min()) if len(total) > 1 else 1.0
    constant_sum = abs(float(total.max()) - low) <= 1e-4 * min(spread, float(total.max()))
    return bool(logits.min() >= 0) and spread > 0 and constant_sum and not are_labels(logits)


def clipped(logits: Tensor) -> int:
    """How many of the logits are exactly the largest, or the smallest, of all: the larger of the two numbers."""
    return max(int((logits == logits.max()).sum()), int((logits == logits.min()).sum()))
