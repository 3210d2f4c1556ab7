"""Auxiliary tasks made from the data: rotation, jigsaw, macro labels, autoencoder (Ghamizi et al. 2021, 2110.15053).

Each task is a function of the image itself, so that an attack can ask for its gradient: what is drawn (a turn, an
order of tiles) follows from the sample's key, and what is to be found is fixed by the clean image. Training, the attack
on several tasks and its analysis all take them from here.
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
"""By dataset, the superclass of each class."""


class Encoder(Protocol):
    """What the heads of all tasks share: a Model, or its search copy."""

    def features(self, x: Tensor) -> Tensor:
        """(B, D) of images x (B, C, H, W)."""

    def head(self, z: Tensor) -> Tensor:
        """Logits (B, K) of the main task, from features z (B, D)."""


class Task(Protocol):
    """One auxiliary task. `error` is 1 where the answer is wrong, or the mean square: smaller is better."""

    def check(self, shape: tuple[int, int, int]) -> None:
        """UserError when images (C, H, W) do not suit the task."""

    def head(self, features: int, shape: tuple[int, int, int]) -> nn.Module:
        """A new head on features (B, features) of images (C, H, W)."""

    def view(self, x: Tensor, key: Tensor) -> Tensor:
        """What the network is shown of x (B, C, H, W)."""

    def target(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        """What is to be found, for clean images x of classes y (B,)."""

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """(B,), for the head's answers."""

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        """(B,), for the head's answers."""


class Labels:
    """A task of classification among `classes`, by cross-entropy; the image as it is."""

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
    """Superclasses: `groups` (K,) holds that of each class; a buffer, so that the hash of a head tells two of them
    apart."""

    groups: Tensor

    def __init__(self, groups: Sequence[int]) -> None:
        nn.Module.__init__(self)
        Labels.__init__(self, max(groups) + 1)
        self.register_buffer("groups", torch.tensor(groups), persistent=False)

    def target(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return self.groups[y]


class Drawn(Labels):
    """Which of `classes` views the network is shown."""

    def target(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return integers(key, torch.full_like(key, self.classes))

    def views(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def view(self, x: Tensor, key: Tensor) -> Tensor:
        chosen = self.target(x, key, key)
        return torch.stack(self.views(x))[chosen, torch.arange(len(x), device=x.device)]


class Rotation(Drawn):
    """By how many quarters the image is turned."""

    def __init__(self) -> None:
        super().__init__(4)

    def views(self, x: Tensor) -> list[Tensor]:
        return [torch.rot90(x, turns, (2, 3)) for turns in range(4)]


class Jigsaw(Drawn):
    """In which of the 24 orders the image's quarters lie."""

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
    """The image from its features: mean square error."""

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
    """The tasks `names`. `macro` (a superclass for each of `classes`) replaces those of the dataset.

    Raises UserError for an unknown task, none, one twice, or superclasses that are missing or do not fit.
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
                    raise UserError(f"no superclasses are known for {dataset} (but for {known}): set method.macro")
                if len(groups) != classes or set(groups) != set(range(max(groups) + 1)) or max(groups) < 1:
                    raise UserError(
                        f"method.macro needs {classes} numbers, the superclass of each class, from 0 without gaps"
                    )
                tasks[name] = Macro(groups)
            case _:
                raise unknown("task", name, NAMES)
    return tasks


class Head(nn.Module):
    """A task and the head that answers it, from features (B, D)."""

    def __init__(self, head: nn.Module, task: Task) -> None:
        super().__init__()
        self.head = head
        self.task = task

    def forward(self, z: Tensor) -> Tensor:
        return self.head(z)  # type: ignore[no-any-return]


def make_heads(tasks: Mapping[str, Task], features: int, shape: tuple[int, int, int], seed: int) -> dict[str, Head]:
    """New heads of `tasks` on networks with that many features, for images (C, H, W). Raises UserError."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for task in tasks.values():
            task.check(shape)
        return {name: Head(task.head(features, shape), task) for name, task in tasks.items()}


def answers(f: Encoder, heads: Mapping[str, Head], x: Tensor, key: Tensor) -> dict[str, Tensor]:
    """The outputs of the main head and of each task's for x (B, C, H, W); what tasks share is computed once."""
    z = f.features(x)
    found = {MAIN: f.head(z)}
    for name, head in heads.items():
        seen = head.task.view(x, task_key(name, key))
        found[name] = head(z if seen is x else f.features(seen))
    return found


def losses(
    out: Mapping[str, Tensor], heads: Mapping[str, Head], x: Tensor, y: Tensor, key: Tensor, *, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """(B,) of each task, the main one (cross-entropy) first, of the `answers` to perturbations of the clean x."""
    found = {MAIN: functional.cross_entropy(out[MAIN].float(), y, reduction="none", label_smoothing=smoothing)}
    for name, head in heads.items():
        found[name] = head.task.loss(out[name], head.task.target(x, y, task_key(name, key)))
    return found


def sample_key(seed: int, index: Tensor) -> Tensor:
    """What the tasks draw by, for samples at the places `index` (S,) of a dataset: the same whatever the attack."""
    return keys(seed, "tasks", index)


def task_key(name: str, key: Tensor) -> Tensor:
    """Each task draws by keys of its own."""
    return fold(key, crc32(name.encode()))
