"""Common corruptions in place of an adversary: Hendrycks and Dietterich 2019, arXiv:1903.12261.

15 corruptions, each an entry of the set: what a sample is felled by is one of them. Severity takes the place of eps.
The images are those of `data/corruptions.py`, and are judged as they are: nothing is searched for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from advbench.data.corruptions import COMMON, source_of
from advbench.engine.attack import Asks, Attack, Context
from advbench.eps import CORRUPTIONS

ENTRIES: dict[str, dict[str, Any]] = {
    "corruptions": {
        "make": "common",
        "summary": "15 common corruptions at severities 1 to 5, and their mean error (Hendrycks and Dietterich 2019)",
    },
}


@dataclass(frozen=True, kw_only=True)
class Corruption(Attack):
    """`source`: auto, or what `data.corruptions.source_of` says of CIFAR-10-C and of the package."""

    asks: ClassVar[Asks] = "logits"
    norms = (CORRUPTIONS,)

    steps: int = 1
    source: str = "auto"

    def prepare(self, context: Context) -> Attack:
        """With the source of the images. Raises UserError where there is none."""
        return replace(self, source=source_of(context.data, self.source))

    def settings(self) -> dict[str, Any]:
        return {"source": self.source}


def common() -> tuple[Attack, ...]:
    """The 15, in the order of the paper."""
    return tuple(Corruption(name=name) for name in COMMON)
