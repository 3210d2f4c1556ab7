"""What is asked of an evaluation, in one object: made once from flags or arguments, and passed whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from advbench.engine.attack import Attack
from advbench.eps import Eps, parse_eps
from advbench.errors import UserError, unknown

CURVES = ("fast", "exact")
ENGINES = ("own", "reference")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Raises UserError for what there is not.

    `attack` names entries of the registry (sets such as autoattack count as their members), or code from outside, or is
    made by hand; `attack_settings` go to the attacks that have them. `eps` are sizes as they are written, or numbers.
    `precision` "bf16" searches in bf16 and attacks the images that stand once more in fp32; "auto" does so where it is
    the faster one (`precision.bf16_pays`) and the attacks hold what that recheck does, so that it makes none stronger
    than it is. `slots` are the rows of every pass, None for as many as suit the device and the images. `processes`
    share the images on a CPU, None for as many as are worth their start; within `ranks.joined` they are those of the
    launcher. `indices` says in short which images these are ("first:1000"). `keep_points` keeps adversarial points.
    `command` and `supersedes` are only told to the record.
    """

    attack: str | Attack | Sequence[str | Attack] = "autoattack"
    attack_settings: Mapping[str, Any] = field(default_factory=dict)
    eps: Sequence[Eps | str | float]
    norm: str = "linf"
    seed: int = 0
    device: torch.device | str = "cpu"
    precision: str = "auto"
    slots: int | None = None
    curve: str = "fast"
    engine: str = "own"
    processes: int | None = None
    indices: str | None = None
    keep_points: bool = False
    command: Sequence[str] = ()
    supersedes: str | None = None

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("engine", self.engine, ENGINES),
            ("curve", self.curve, CURVES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in choices:
                raise unknown(what, value, choices)
        if not self.attacks:
            raise UserError("no attack was named: choose at least one (advbench list attacks)")
        if not self.grid:
            raise UserError("no eps was given: write a comma list such as 0,2/255,4/255,8/255")

    @cached_property
    def attacks(self) -> tuple[str | Attack, ...]:
        """What `attack` names, one by one."""
        return (self.attack,) if isinstance(self.attack, str | Attack) else tuple(self.attack)

    @cached_property
    def grid(self) -> tuple[Eps, ...]:
        """The sizes, rising, each once. Raises UserError for a size that the norm cannot have."""
        sizes: dict[float, Eps] = {}
        for size in self.eps:
            made = parse_eps(size.text if isinstance(size, Eps) else str(size), self.norm)
            sizes.setdefault(made.value, made)
        return tuple(sizes[value] for value in sorted(sizes))

    @property
    def sizes(self) -> list[float]:
        """The grid as numbers."""
        return [size.value for size in self.grid]
