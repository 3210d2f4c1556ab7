"""Attacks that can aim at a chosen class: one for all images, or one for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from advbench import rng
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Context, Samples, prepared
from advbench.engine.losses import KL, LOSSES, aims
from advbench.engine.oracle import Oracle
from advbench.errors import UserError, reading, shortened
from advbench.files import plain_path, read_list
from advbench.recipe.fields import Size

RANDOM, LEAST_LIKELY = "random", "least-likely"


@dataclass(frozen=True, kw_only=True)
class Aimed(Attack):
    """Base class of attacks that can aim. Any misclassification counts, as everywhere.

    - `target`: the class to aim at: a number; "random", a wrong class for each image, drawn by the seed and the image's
      place in the dataset; "least-likely", the wrong class of the least logit for the clean image; or a file with a
      class for each image, in their order: whole numbers, one a line, or a JSON list. Images of that class itself are
      attacked untargeted.
    - `target_sha256`: the hash of the numbers of a file, filled in, which distinguishes files in records.
    """

    target: Size | str | None = None
    target_sha256: str = ""
    goals: Mapping[int, int] | None = prepared()  # by place in the dataset

    def for_model(self, norm: str, classes: int) -> Attack:
        attack = super().for_model(norm, classes)
        if isinstance(self.target, int) and not 0 <= self.target < classes:
            raise UserError(f"{self.name}: target is {self.target}, but the classes are 0 to {classes - 1}")
        if self.loss == KL and self.is_targeted():
            raise UserError(f"{self.name}: the loss {KL} has no targeted form: choose from {', '.join(LOSSES)}")
        return attack

    def is_targeted(self) -> bool:
        return self.target is not None

    def prepare(self, context: Context) -> Attack:
        return self.with_goals(context)

    def with_goals(self, context: Context) -> Self:
        """This attack with the targets of random and of a file. UserError for a file that does not fit the images, or
        whose numbers are not those of `target_sha256`."""
        if self.target_sha256 and (not isinstance(self.target, str) or self.target in (RANDOM, LEAST_LIKELY)):
            raise UserError(f"{self.name}: target_sha256 is the hash of a file of targets: write target=FILE too")
        if not isinstance(self.target, str) or self.target == LEAST_LIKELY:
            return self
        goals = goals_of(self.target, context.data, context.seed)
        if self.target == RANDOM:
            return replace(self, goals=goals)
        digest = hashlib.sha256(json.dumps(list(goals.values())).encode()).hexdigest()
        if self.target_sha256 not in ("", digest):
            raise UserError(
                f"{self.name}: the targets of {self.target} have the hash {digest[:12]}..., not "
                f"{self.target_sha256[:12]}...: name the file that was meant by --set target=FILE"
            )
        return replace(self, target=plain_path(self.target), target_sha256=digest, goals=goals)

    def target_classes(self, logits: Tensor, y: Tensor, goals: Tensor | None = None) -> Tensor:
        """As `Attack.target_classes`; `goals` (n,): the classes to aim at, where they differ by image."""
        if goals is None and self.target == LEAST_LIKELY:
            goals = least_likely(logits, y)
        elif goals is None and isinstance(self.target, str):
            goals = y  # not prepared: as many items, without a target
        return aims(logits, y, getattr(self, "n_targets", 0), goals if goals is not None else self.target)  # type: ignore[arg-type]

    def target_classes_of(self, samples: Samples, oracle: Oracle, norm: str) -> Tensor:
        if self.goals is None:
            return self.target_classes(samples.logits, samples.y)
        goals = torch.tensor([self.goals[place] for place in samples.index.tolist()], device=samples.y.device)
        return self.target_classes(samples.logits, samples.y, goals)

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        if not self.target_sha256:  # records of other attacks stay as they are
            del settings["target_sha256"]
        return settings


def goals_of(target: str, data: Dataset, seed: int) -> dict[int, int]:
    """The class that `target`, random or a file, names for each image of `data`, by its place in the whole split.

    Raises UserError for a file that does not list a class for each image.
    """
    places = data.indices.tolist()
    if target == RANDOM:
        key = rng.keys(seed, "target", data.indices)
        drawn = rng.integers(key, torch.full_like(data.labels, data.num_classes - 1))
        return dict(zip(places, (drawn + (drawn >= data.labels)).tolist(), strict=True))
    path = Path(target).expanduser()
    if not path.is_file():
        raise UserError(
            f"target {target!r} is neither a file nor a form: choose a class, 0 to {data.num_classes - 1}, {RANDOM}, "
            f"{LEAST_LIKELY} or a file of classes, one for each image"
        )
    with reading(f"the targets {target}"):
        listed = read_list(path)
    if len(listed) != len(places):
        raise UserError(f"the targets {target}: it lists {len(listed)}, but {len(places)} images are attacked")
    for place, number in enumerate(listed):
        if type(number) is not int or not 0 <= number < data.num_classes:  # neither 1.0 nor true
            what = f"number {place + 1} is {shortened(number)}"
            raise UserError(f"the targets {target}: {what}, but the classes are 0 to {data.num_classes - 1}")
    return dict(zip(places, listed, strict=True))


def least_likely(logits: Tensor, y: Tensor) -> Tensor:
    """The wrong class (n,) of the least logit (n, K); the first of equal ones."""
    return logits.scatter(1, y[:, None], torch.inf).argmin(1)


def aimed_at(settings: Mapping[str, Any], logits: Tensor, data: Dataset, seed: int) -> Tensor | None:
    """The classes (n,) at which an attack of these settings aims, from the clean logits (n, K); None for none."""
    target = settings.get("target")
    if isinstance(target, int):
        return torch.full_like(data.labels, target)
    if target == LEAST_LIKELY:
        return least_likely(logits[:, : data.num_classes], data.labels)
    if target != RANDOM and "target_sha256" not in settings:
        return None
    goals = goals_of(str(target), data, seed)
    return torch.tensor([goals[place] for place in data.indices.tolist()])
