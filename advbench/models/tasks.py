"""Auxiliary tasks made from the data: rotation, jigsaw, macro labels, autoencoder (Ghamizi et al. 2021, 2110.15053).

Each task is a function of the image, so an attack can use its gradient. What is drawn at random (a turn, an order of
tiles) follows from the sample's key, and the target is computed from the clean image. Training, the attack on several
tasks and its analysis share this code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from math import prod
from typing import Protocol
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench.errors import UserError, unknown
from advbench.rng import fold, integers, keys

MAIN = "main"

MACRO: dict[str, tuple[int, ...]] = {
    "cifar10": (1, 1, 0, 0, 0, 0, 0, 0, 1, 1),  # animals, vehicles
    "fashion-mnist": (0, 1, 0, 2, 0, 3, 0, 3, 4, 3),  # tops, trousers, dresses, shoes, bags
    "mnist": (1, 0, 0, 0, 0, 0, 1, 0, 1, 1),  # digits with a closed loop: 0 6 8 9
    "digits": (1, 0, 0, 0, 0, 0, 1, 0, 1, 1),
}
"""For each dataset, the superclass of each class."""


class Encoder(Protocol):
    """The network whose features all heads share: a Model, or its search copy."""

    def __call__(self, x: Tensor) -> Tensor:
        """The logits (B, K) of the main task."""

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) of images x (B, C, H, W)."""

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features of images x, and the logits (B, K) of the main task."""


class Task(Protocol):
    """One auxiliary task."""

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise UserError if images (C, H, W) do not suit the task."""

    def head(self, features: int, shape: tuple[int, int, int]) -> nn.Module:
        """A new head, from `features` features to the outputs of the task, for images (C, H, W)."""

    def view(self, x: Tensor, key: Tensor) -> Tensor:
        """The network's input for this task (B, C, H, W), made from x (B, C, H, W) and the keys (B,)."""

    def target(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        """The target (B, ...), for clean images x of classes y (B,)."""

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """The loss (B,) of the head's outputs."""

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        """The error (B,) of the head's outputs: 0 or 1 for a classification, else the mean square."""


class Labels:
    """Classification among `classes` classes, with cross-entropy, on the unchanged image."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def check(self, shape: tuple[int, int, int]) -> None:
        pass

    def head(self, features: int, shape: tuple[int, int, int]) -> nn.Module:
        return nn.Linear(features, self.classes)

    def view(self, x: Tensor, key: Tensor) -> Tensor:
        return x

    def target(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return y

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(out.float(), target, reduction="none")

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        return (out.argmax(1) != target).float()


class Macro(Labels, nn.Module):
    """Classification of superclasses: `groups` (K,) holds that of each class.

    It is a buffer, so that the hash of a head differs between two choices of superclasses.
    """

    groups: Tensor

    def __init__(self, groups: Sequence[int]) -> None:
        nn.Module.__init__(self)
        Labels.__init__(self, max(groups) + 1)
        self.register_buffer("groups", torch.tensor(groups), persistent=False)

    def target(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return self.groups[y]


class Drawn(Labels):
    """Prediction of which of `classes` views of the image the network received; drawn by the key."""

    def target(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return integers(key, torch.full_like(key, self.classes))

    def views(self, x: Tensor) -> list[Tensor]:
        """All views of x, each (B, C, H, W)."""
        raise NotImplementedError

    def view(self, x: Tensor, key: Tensor) -> Tensor:
        chosen = self.target(x, key, key)
        return torch.stack(self.views(x))[chosen, torch.arange(len(x), device=x.device)]


class Rotation(Drawn):
    """Prediction of the number of quarter turns."""

    def __init__(self) -> None:
        super().__init__(4)

    def check(self, shape: tuple[int, int, int]) -> None:
        if shape[1] != shape[2]:
            raise UserError(f"rotation needs square images, not {shape[1]}x{shape[2]}")

    def views(self, x: Tensor) -> list[Tensor]:
        return [torch.rot90(x, turns, (2, 3)) for turns in range(4)]


class Jigsaw(Drawn):
    """Prediction of the order of the image's quarters, one of 24."""

    def __init__(self) -> None:
        super().__init__(24)

    def check(self, shape: tuple[int, int, int]) -> None:
        if shape[1] % 2 or shape[2] % 2:
            raise UserError(f"jigsaw needs images of even sides, not {shape[1]}x{shape[2]}")

    def views(self, x: Tensor) -> list[Tensor]:
        tiles = [tile for row in x.chunk(2, 2) for tile in row.chunk(2, 3)]
        orders = permutations(range(4))
        return [
            torch.cat([torch.cat([tiles[a], tiles[b]], 3), torch.cat([tiles[c], tiles[d]], 3)], 2)
            for a, b, c, d in orders
        ]


class Autoencoder:
    """Reconstruction of the image from its features, with the mean square error."""

    def check(self, shape: tuple[int, int, int]) -> None:
        pass

    def head(self, features: int, shape: tuple[int, int, int]) -> nn.Module:
        return nn.Sequential(nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, prod(shape)))

    def view(self, x: Tensor, key: Tensor) -> Tensor:
        return x

    def target(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return x.detach().flatten(1)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return (out.float() - target).square().mean(1)

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        return self.loss(out, target)


NAMES = ("rotation", "macro", "jigsaw", "autoencoder")


def make_tasks(names: Sequence[str], dataset: str, classes: int, macro: Sequence[int] = ()) -> dict[str, Task]:
    """The tasks `names`, by name. `macro` (a superclass for each of `classes` classes) replaces those of the dataset.

    Raises UserError for no task, an unknown one, one named twice, and superclasses that are missing or do not fit.
    """
    if not names or len(set(names)) < len(names):
        raise UserError(f"method.tasks is {','.join(names)!r}: name each of {', '.join(NAMES)} once, at least one")
    tasks: dict[str, Task] = {}
    for name in names:
        match name:
            case "rotation":
                tasks[name] = Rotation()
            case "jigsaw":
                tasks[name] = Jigsaw()
            case "autoencoder":
                tasks[name] = Autoencoder()
            case "macro":
                groups = tuple(macro) or MACRO.get(dataset, ())
                if not groups:
                    known = ", ".join(MACRO)
                    raise UserError(f"no superclasses are known for {dataset}, only for {known}: set method.macro")
                if len(groups) != classes or set(groups) != set(range(max(groups) + 1)) or max(groups) < 1:
                    raise UserError(
                        f"method.macro needs {classes} numbers, the superclass of each class, from 0 without gaps"
                    )
                tasks[name] = Macro(groups)
            case _:
                raise unknown("task", name, NAMES)
    return tasks


class Head(nn.Module):
    """A task, and the head that maps features (B, D) to its outputs."""

    def __init__(self, head: nn.Module, task: Task) -> None:
        super().__init__()
        self.head = head
        self.task = task

    def forward(self, z: Tensor) -> Tensor:
        return self.head(z)  # type: ignore[no-any-return]


def make_heads(tasks: Mapping[str, Task], features: int, shape: tuple[int, int, int], seed: int) -> dict[str, Head]:
    """New heads of `tasks`, by name, for networks with `features` features and images (C, H, W).

    Raises UserError if a task does not suit the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for task in tasks.values():
            task.check(shape)
        return {name: Head(task.head(features, shape), task) for name, task in tasks.items()}


def answers(f: Encoder, heads: Mapping[str, Head], x: Tensor, key: Tensor) -> dict[str, Tensor]:
    """The outputs of the main head and of each task's head for x (B, C, H, W); shared features are computed once."""
    if not heads:
        return {MAIN: f(x)}  # of any network
    z, logits = f.features_and_logits(x)
    found = {MAIN: logits}
    for name, head in heads.items():
        seen = head.task.view(x, task_key(name, key))
        found[name] = head(z if seen is x else f.features(seen))
    return found


def losses(
    out: Mapping[str, Tensor], heads: Mapping[str, Head], x: Tensor, y: Tensor, key: Tensor, *, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """The loss (B,) of each task, the main one (cross-entropy) first, for `out`, the `answers` to perturbations of x.

    x: the clean images; `smoothing`: label smoothing of the main task.
    """
    found = {MAIN: functional.cross_entropy(out[MAIN].float(), y, reduction="none", label_smoothing=smoothing)}
    for name, head in heads.items():
        found[name] = head.task.loss(out[name], head.task.target(x, y, task_key(name, key)))
    return found


def sample_key(seed: int, index: Tensor) -> Tensor:
    """The keys of samples at the places `index` (S,) of a dataset, by which tasks draw: the same for every attack."""
    return keys(seed, "tasks", index)


def task_key(name: str, key: Tensor) -> Tensor:
    """The keys (B,) of one task, different for each task."""
    return fold(key, crc32(name.encode()))
