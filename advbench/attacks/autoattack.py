"""AutoAttack's sets of parameter-free attacks: Croce and Hein 2020, arXiv:2003.01690 (L1: 2021, 2103.01208).

A sample is robust if every member fails on it. Each member attacks only the samples that withstood the earlier ones.
"""

from __future__ import annotations

from typing import Any

from advbench.attacks.apgd import APGD
from advbench.attacks.fab import FAB, FABT
from advbench.attacks.square import Square
from advbench.engine.attack import Attack

ENTRIES: dict[str, dict[str, Any]] = {
    "autoattack": {
        "make": "standard",
        "summary": "AutoAttack, standard: apgd-ce, apgd-t, fab-t, square (Croce and Hein 2020)",
        "members": ["apgd-ce", "apgd-t", "fab-t", "square"],
    },
    "autoattack-plus": {
        "make": "plus",
        "summary": "AutoAttack plus: apgd-ce and apgd-dlr with 5 restarts, fab with 5, square, apgd-t, fab-t",
        "members": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    },
    "autoattack-rand": {
        "make": "rand",
        "summary": "AutoAttack for randomised models: apgd-ce and apgd-dlr on the mean of 20 passes",
        "members": ["apgd-ce", "apgd-dlr"],
    },
}


def standard(norm: str = "linf") -> tuple[Attack, ...]:
    """The four attacks of the standard set. In L1, APGD uses larger eps, 5 restarts (CE) and 5 targets (DLR)."""
    l1 = norm == "l1"
    return (
        APGD(name="apgd-ce", loss="ce", restarts=5 if l1 else 1, larger_eps=l1),
        APGD(name="apgd-t", loss="dlr", n_targets=5 if l1 else 9, larger_eps=l1),
        FABT(name="fab-t"),
        Square(name="square"),
    )


def plus(norm: str = "linf") -> tuple[Attack, ...]:
    """The six attacks of the set `plus`."""
    l1 = norm == "l1"
    return (
        APGD(name="apgd-ce", loss="ce", restarts=5, larger_eps=l1),
        APGD(name="apgd-dlr", loss="dlr", restarts=5, larger_eps=l1),
        FAB(name="fab", restarts=5),
        Square(name="square"),
        APGD(name="apgd-t", loss="dlr", n_targets=9, larger_eps=l1),
        FABT(name="fab-t"),
    )


def rand(norm: str = "linf") -> tuple[Attack, ...]:
    """The two attacks of the set `rand`, with answers averaged over 20 passes."""
    l1 = norm == "l1"
    return (
        APGD(name="apgd-ce", loss="ce", eot=20, larger_eps=l1),
        APGD(name="apgd-dlr", loss="dlr", eot=20, larger_eps=l1),
    )
