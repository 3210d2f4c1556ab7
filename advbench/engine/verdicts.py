"""What a search finds, and what it spends."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

from torch import Tensor

Attempt = tuple[float, int, Tensor]
"""The margin on the search copy, the item's place in the queue, and the point (C, H, W) on the CPU."""


@dataclass
class Verdicts:
    """The results of one attack on n samples, on the CPU.

    `fell` (n,) bool; `distance` (n,) float64: of the nearest verified adversarial example, inf if there is none;
    `points`: those adversarial examples by row, if asked for; `refused` (n,) float64: the size of the nearest hit that
    the model refused, inf if there is none. `best_margin` (n,): the largest margin on the search copy of a query inside
    the ball, -inf if not asked for; `attempts`: of the samples that stand, by row and if asked for, that query; neither
    in a search for the nearest adversarial example. `unverified` counts the refused hits, `nonfinite` hits with NaN or
    infinite logits, `outside` points returned by the attack that lie outside the ball.
    """

    fell: Tensor
    distance: Tensor
    best_margin: Tensor
    refused: Tensor
    points: dict[int, Tensor] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    unverified: int = 0
    nonfinite: int = 0
    outside: int = 0


@dataclass
class Work:
    """What searches have spent: slot-steps (turns x width), those of them that served an item, and seconds by part.

    `attacks`: from the first kernel of a stride until its results are read; `verification`: of hits, by the model;
    `recheck`: all parts of searches that repeat others in fp32; `host`: the choice of items and the rest. An item that
    ends within a stride was served for half of it.
    """

    slot_steps: float = 0.0
    useful: float = 0.0
    attacks: float = 0.0
    verification: float = 0.0
    recheck: float = 0.0
    host: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def rechecking(self) -> Work:
        """The same, all of whose seconds were of a recheck."""
        return Work(self.slot_steps, self.useful, recheck=self.attacks + self.verification + self.recheck + self.host)

    @property
    def useful_share(self) -> float | None:
        """The share of the slot-steps that served an item; None without any."""
        return self.useful / self.slot_steps if self.slot_steps else None

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds by part, for the record."""
        names = ("attacks", "verification", "recheck", "host")
        return {name: round(getattr(self, name), 3) for name in names}
