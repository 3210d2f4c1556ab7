"""A black-box attack that fells what the attacks before it did not: a sign that these follow false gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from advbench.record.fates import Fates
from advbench.record.parts import Flag, Severity

WINS = "-wins"
NOTE, SECONDED, ALONE = 0.002, 0.02, 0.1  # shares of the images
MIN_IMAGES = 4  # fewer are a note
SPAN = 1.5  # between an eps and the smallest below it at which images still count
ABOUT_GRADIENTS = frozenset(
    {
        "zero-gradient",
        "nan-gradient",
        "saturated",
        "rounding",
        "probabilities",
        "clipped",
        "discontinuous",
        "loss-not-rising",
        "straight-through",
        "above-chance",
    }
)


def felled_alone(numbers: Sequence[int], fates: Fates, eps: Sequence[float]) -> list[int]:
    """For each eps how many images the attacks of those numbers alone felled, at it or not far below."""
    fell = np.where(np.isin(fates.by, numbers), np.append(eps, np.inf)[fates.fell], np.inf)
    return [int(((fell <= size) & (fell > size / SPAN * (1 + 1e-9))).sum()) for size in eps]


def black_box_ahead(
    name: str, numbers: Sequence[int], fates: Fates, eps: Sequence[float], flags: Iterable[Flag]
) -> tuple[Flag, ...]:
    """At most one flag on the attack `name`, at the places `numbers` of the list, from the images it alone felled.

    Square fells some images first on honest models too, MNIST's above all. So it is a note, and suspect only above the
    share ALONE, or above SECONDED where one of `flags`, raised at that eps or below, is about gradients. Images count
    that fell at an eps or not far below, so that a fine grid does not hide them. It is raised at the smallest eps at
    which it is as severe as anywhere.
    """
    n, counts = len(fates), felled_alone(numbers, fates, eps)
    signs = [flag.eps or 0.0 for flag in flags if flag.name in ABOUT_GRADIENTS]

    def severity(count: int, size: float) -> Severity | None:
        seconded = any(sign <= size for sign in signs)
        if count > (SECONDED if seconded else ALONE) * n and count >= MIN_IMAGES:
            return "suspect"
        return "note" if count > NOTE * n else None

    found = [severity(count, size) for count, size in zip(counts, eps, strict=True)]
    worst = next((one for one in ("suspect", "note") if one in found), None)
    if worst is None:
        return ()
    place = found.index(worst)
    detail = f"{name} alone felled {counts[place] / n:.1%} of the images at eps {eps[place]:g}: gradients may be masked"
    return (Flag(name=f"{name}{WINS}", severity=worst, eps=eps[place], k=counts[place], n=n, detail=detail),)
