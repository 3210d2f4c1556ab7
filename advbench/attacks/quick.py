"""`quick`: two cheap margin attacks and a sentinel, for most of AutoAttack's verdicts at a fifth of its passes.

The margin from output-diversified starts (Liu et al. 2022, arXiv:2203.05154), then APGD on the margin to the 3 classes
that are nearest in MALT's order (Melamed et al. 2024, arXiv:2407.02240), then Square, which gives images up
that are far from failure after 500 queries. Square follows no gradient: what it alone fells says that the other two
were misled.
"""

from __future__ import annotations

from typing import Any

from advbench.attacks.apgd import APGD
from advbench.attacks.odi import ODIMargin
from advbench.attacks.square import Square
from advbench.engine.attack import Attack

ENTRIES: dict[str, dict[str, Any]] = {
    "quick": {
        "make": "quick",
        "summary": "odi-margin, multi-targeted, square with early stopping; where that may be too weak, autoattack too",
        "members": ["odi-margin", "multi-targeted", "square"],
        "escalates": "autoattack",
    },
}


def quick() -> tuple[Attack, ...]:
    """The three attacks. An evaluation by them goes on to AutoAttack where a flag doubts the number, or where the
    second or the third still fells many images."""
    return (
        ODIMargin(name="odi-margin"),
        APGD(name="multi-targeted", loss="cw", n_targets=3, targets="malt"),
        Square(name="square", early_stop=0.1),
    )
