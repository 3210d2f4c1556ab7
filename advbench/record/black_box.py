"""A black-box attack that fells what the attacks before it did not: a sign that these follow false gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advbench.record.fates import Fates
from advbench.record.parts import Flag, Severity

WINS = "-wins"
NOTE, SECONDED, ALONE = 0.002, 0.02, 0.1  # shares of the images
MIN_IMAGES = 4  # fewer are a note
ABOUT_GRADIENTS = frozenset(
    {
        "zero-gradient",
        "nan-gradient",
        "rounding",
        "discontinuous",
        "loss-not-rising",
        "straight-through",
        "above-chance",
    }
)


def black_box_ahead(
    name: str, number: int, fates: Fates, eps: Sequence[float], flags: Iterable[Flag]
) -> tuple[Flag, ...]:
    """At most one flag on the attack `name`, the `number`th of the list, from the images that it alone felled.

    Square fells some images first on honest models too, MNIST's above all. So it is a note, and suspect only above the
    share ALONE, or above SECONDED where one of `flags` is about gradients. It is raised at the smallest eps at which it
    is as severe as anywhere.
    """
    seconded = any(flag.name in ABOUT_GRADIENTS for flag in flags)
    counts = [int(((fates.by == number) & (fates.fell == place)).sum()) for place in range(len(eps))]
    n = len(fates)

    def severity(count: int) -> Severity | None:
        share = count / n
        if share > (SECONDED if seconded else ALONE) and count >= MIN_IMAGES:
            return "suspect"
        return "note" if share > NOTE else None

    found = [severity(count) for count in counts]
    worst = next((one for one in ("suspect", "note") if one in found), None)
    if worst is None:
        return ()
    place = found.index(worst)
    detail = f"{name} alone felled {counts[place] / n:.1%} of the images at eps {eps[place]:g}: gradients may be masked"
    return (Flag(name=f"{name}{WINS}", severity=worst, eps=eps[place], k=counts[place], n=n, detail=detail),)
