"""Common corruptions instead of an adversary: Hendrycks and Dietterich 2019, arXiv:1903.12261.

The set has 15 members, one per corruption; severity takes the place of eps. The images come from `data/corruptions.py`
and are judged as they are, without a search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from advbench.data.corruptions import COMMON, source_of
from advbench.engine.attack import Asks, Attack, Context
from advbench.eps import CORRUPTIONS
from advbench.recipe.fields import Count

ENTRIES: dict[str, dict[str, Any]] = {
    "corruptions": {
        "make": "common",
        "summary": "15 common corruptions at severities 1 to 5, and their mean error (Hendrycks and Dietterich 2019)",
        "example": "advbench evaluate --attack corruptions --dataset cifar10",
    },
}


@dataclass(frozen=True, kw_only=True)
class Corruption(Attack):
    """One corruption.

    `source`: of the corrupted images: "auto", or as in `data.corruptions.source_of`.
    """

    version: ClassVar[int] = 2
    asks: ClassVar[Asks] = "logits"
    norms = (CORRUPTIONS,)

    steps: Count = 1
    source: str = "auto"

    def prepare(self, context: Context) -> Attack:
        """This attack with the source of the images. Raises UserError if there is none."""
        return replace(self, source=source_of(context.data, self.source))

    def settings(self) -> dict[str, Any]:
        return {"source": self.source}


def common() -> tuple[Attack, ...]:
    """The 15 corruptions in the paper's order."""
    return tuple(Corruption(name=name) for name in COMMON)
