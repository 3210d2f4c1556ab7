"""The eps that the Markdown table and the figure show, and their labels; the CSV has every eps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from advbench.escape import visible
from advbench.record import Record

MAX_SHOWN = 8


def shown_eps(records: Sequence[Record], reference: float) -> list[float]:
    """`reference` and the other eps > 0 that most records have, at most MAX_SHOWN together, sorted."""
    counts = Counter(eps for record in records for eps in record.eps if eps > 0 and eps != reference)
    most_common = sorted(counts, key=lambda eps: (-counts[eps], eps))[: MAX_SHOWN - 1]
    return sorted([*most_common, reference])


def eps_label(eps: float, records: Sequence[Record]) -> str:
    """`eps` as `records` write it: the shortest text, the first alphabetically if several are as short."""
    texts = {point.eps_text for record in records if (point := record.at(eps))}
    return visible(min(texts, key=lambda text: (len(text), text), default=f"{eps:g}"))


def measured_eps(records: Sequence[Record], reference: float) -> list[float]:
    """Every eps > 0 at which any of `records` was measured, rising. Those that `Record.at` takes for one are one.

    `reference` stands for those that are it.
    """
    found: list[float] = []
    for eps in sorted({reference, *(eps for record in records for eps in record.eps)} - {0.0}):
        if found and abs(eps - found[-1]) <= 1e-9 * eps:
            found[-1] = reference if reference in (eps, found[-1]) else found[-1]
        elif any(record.at(eps) for record in records):
            found.append(eps)
    return found
