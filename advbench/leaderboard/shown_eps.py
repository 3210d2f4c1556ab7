"""The eps that the Markdown table and the figure show, and their labels; the CSV has every eps."""

from __future__ import annotations

from collections.abc import Sequence

from advbench.escape import visible
from advbench.record import Record, measured_eps

MAX_SHOWN = 8


def shown_eps(records: Sequence[Record], reference: float) -> list[float]:
    """`reference` and the other eps > 0 that most records have, at most MAX_SHOWN together, sorted."""
    counts = measured_eps(records, reference)
    most_common = sorted(counts.keys() - {reference}, key=lambda eps: (-counts[eps], eps))[: MAX_SHOWN - 1]
    return sorted([*most_common, reference])


def eps_label(eps: float, records: Sequence[Record]) -> str:
    """`eps` as `records` write it: the shortest text, the first alphabetically if several are as short."""
    texts = {point.eps_text for record in records if (point := record.at(eps))}
    return visible(min(texts, key=lambda text: (len(text), text), default=f"{eps:g}"))
