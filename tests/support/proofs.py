"""What the tests of all attacks read from an attack's own file: `proof` in its ENTRIES.

    "proof": {
        "quick": {...},     # settings for tests that need a few steps only
        "settings": {...},  # settings for the closed forms of linear models
        "needs": {"l2": 1.5, "l1 bound": None},  # how many times the exact eps it needs to fell every sample
        "nearest": {"l2 free": 1.01},  # minimum-norm attacks: how many times the exact distance its points may have
    }

Every part may be missing: the attack is then run with its own settings, and must come within 0.1 % of the exact value.
A key is a norm, or a norm with `free` (no border of [0, 1] cuts the balls) or `bound` (the borders cut them). None says
that no eps is enough. Single steps need more than the exact eps because a random start costs some of it, or because
they do not see the border of [0, 1]; so do attacks in L2, whose step onto ball and box is not the exact projection.
"""

from __future__ import annotations

import math
from typing import Any

from advbench.engine.attack import Attack
from advbench.registry import Entry, entries, find

NORMS = ("linf", "l2", "l1", "l0", "fourier-linf")
PARTS = ("quick", "settings", "needs", "nearest")
SIDES = {False: "free", True: "bound"}
STRICTEST = 1.001


def made(name: str, part: str) -> Attack | tuple[Attack, ...]:
    """The attack or set `name` with the settings of its proof, `part` being "quick" or "settings"."""
    return find("attacks", name).create(**settings(name, part))  # type: ignore[no-any-return]


def settings(name: str, part: str) -> dict[str, Any]:
    return dict(entries("attacks")[name].proof.get(part, {}))


def factor(name: str, part: str, norm: str, bound: bool) -> float:
    """What "needs" or "nearest" allows for a norm, as a multiple of the exact value; infinite for None."""
    allowed = entries("attacks")[name].proof.get(part, {})
    found = allowed.get(f"{norm} {SIDES[bound]}", allowed.get(norm, STRICTEST))
    return math.inf if found is None else float(found)


def place(name: str, part: str, norm: str, bound: bool) -> str:
    """Where to write what `factor` is to allow, for the text of a failure."""
    return f"ENTRIES[{name!r}]['proof'][{part!r}]['{norm} {SIDES[bound]}'] of {file_of(entries('attacks')[name])}"


def file_of(entry: Entry) -> str:
    """The file of an entry, from the root of the repository."""
    return entry.module.replace(".", "/") + ".py"
