"""All settings of an evaluation in one object, made once from flags or arguments and passed on whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, SupportsIndex

import torch

from advbench.certify import NORMS as PROVABLE
from advbench.engine.attack import Attack
from advbench.eps import CORRUPTIONS, NORMS, Eps, as_eps
from advbench.errors import UserError, shortened, unknown
from advbench.evaluator.adversarials import Adversarials

CURVES = ("fast", "exact")
CERTIFY = ("off", "after", "first")
ENGINES = ("own", "reference")
PRECISIONS = ("auto", "fp32", "bf16")
Asked = str | Attack | Callable[..., Any] | object  # a name, or what `attacks.external.attack_of` takes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an evaluation. Raises UserError for an unknown choice, no attack, no eps or an invalid eps.

    - `attack`: names of registry entries (a set such as autoattack stands for its members), `package.module:name` for
      code from outside, or attacks made by hand: ours, another library's, or a function, as in `attacks.external`.
    - `attack_settings`: fields by name; each goes to the attacks that have such a field.
    - `attack_budget`: forward and backward passes of all attacks together on an image at each eps, see `attack_budget`;
      None for as many as the attacks usually make.
    - `eps`: sizes as they are written ("8/255"), or numbers.
    - `precision`: "bf16" searches in bf16 and attacks the images that stand in doubt once more in fp32. "auto" does so
      where that is faster (`precision.bf16_pays`) and the attacks, or those they may go on to, include APGD-T, so that
      the recheck does not make them stronger than they are in fp32.
    - `slots`: rows of every pass; None for as many as suit the device and the images.
    - `processes`: how many share the images on a CPU; None for as many as are worth their start. Within `ranks.joined`
      they are those of the launcher.
    - `indices`: a short form of which images these are, such as "first:1000"; None records all positions.
    - `name`: what tables and figures call the model; None for its spec.
    - `keep_points`: keep the adversarial examples, and the strongest attempts on images that stand.
    - `probes`: look for signs that the attacks were misled; without it the record is suspect.
    - `adversarials`: files of others' adversarial images, which are merged in after the attacks (see `adversarials`).
    - `certify`: "after" the attacks, prove images to be robust; "first": before them, and skip the attacks that the
      proofs make needless. `certify_seconds`: about how long the proofs may take for an image at an eps.
    - `command`, `supersedes`: copied into the record.
    """

    attack: Asked | Sequence[Asked] = "autoattack"
    attack_settings: Mapping[str, Any] = field(default_factory=dict)
    attack_budget: int | None = None
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
    name: str | None = None
    keep_points: bool = False
    probes: bool = True
    adversarials: Sequence[Adversarials] = ()
    certify: str = "off"
    certify_seconds: float = 1.0
    command: Sequence[str] = ()
    supersedes: str | None = None

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("norm", self.norm, (*NORMS, CORRUPTIONS)),
            ("engine", self.engine, ENGINES),
            ("curve", self.curve, CURVES),
            ("precision", self.precision, PRECISIONS),
            ("value of certify", self.certify, CERTIFY),
        ):
            if value not in choices:
                raise unknown(what, value, choices)
        for name, least in (("seed", 0), ("slots", 1), ("processes", 1), ("attack_budget", 1)):
            what, number = name.replace("_", " "), getattr(self, name)
            if number is None and what != "seed":
                continue
            if not isinstance(number, SupportsIndex) or isinstance(number, bool) or number.__index__() < least:
                raise UserError(f"{what} is {shortened(number)}: it must be a whole number from {least}")
            if number.__index__() >= 2**62:
                raise UserError(f"{what} is {shortened(number)}: it must be below 2^62")
            object.__setattr__(self, name, number.__index__())  # NumPy's and torch's numbers are none in a record
        if self.certify != "off" and self.norm not in PROVABLE:
            raise UserError(f"norm {self.norm} has no certified bounds: they are for {', '.join(PROVABLE)}")
        if not (isinstance(self.certify_seconds, int | float) and 0 < self.certify_seconds < float("inf")):
            raise UserError(f"certify seconds are {shortened(self.certify_seconds)}: they must be a number above 0")
        if not isinstance(self.attack_settings, Mapping):
            raise UserError(f"settings are {shortened(self.attack_settings)}: give a dict, such as {{'steps': 40}}")
        if not self.attacks:
            raise UserError("no attack was named: choose at least one (advbench list attacks)")
        if self.adversarials and self.norm == CORRUPTIONS:
            raise UserError("corruptions are no perturbations in a ball: leave out --adversarials")
        if not self.grid:
            raise UserError("no eps was given: write a comma list such as 0,2/255,4/255,8/255")

    @cached_property
    def attacks(self) -> tuple[Any, ...]:
        """`attack` as a tuple."""
        several = isinstance(self.attack, Sequence) and not isinstance(self.attack, str)
        return tuple(self.attack) if several else (self.attack,)  # type: ignore[arg-type]

    @cached_property
    def grid(self) -> tuple[Eps, ...]:
        """The eps grid, rising, each size once. Raises UserError for a size that the norm cannot have."""
        sizes: dict[float, Eps] = {}
        for size in self.eps:
            made = as_eps(size, self.norm)
            sizes.setdefault(made.value, made)
        return tuple(sizes[value] for value in sorted(sizes))

    @property
    def sizes(self) -> list[float]:
        """The grid as numbers."""
        return [size.value for size in self.grid]
