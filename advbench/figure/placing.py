"""Labels beside lines and points, moved so that none covers another. It is done last, when the panels have their size.

An annotation that is to be moved has a name of its kind (`set_label`): END for those right of the axes, POINT for those
around their points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from advbench.figure.text import width_of

END, POINT = "label at the end of a line", "label of a point"
_GAP = 1.1  # lines of text from one label at the end of a line to the next
_SPACE = 3.0  # points between a leader and its label, which need not be cut out of it then (this is slow)
_LEADER = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0.0, "shrinkB": 3.0}


class Box(NamedTuple):
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def lies_in(self, other: Box) -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )


def label_end(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """Write `text` right of the axes, at the height of (x, y), where a line ends."""
    note = axes.annotate(
        text, (x, y), (1.02, y), textcoords=axes.get_yaxis_transform(), va="center", annotation_clip=False,
        arrowprops={**_LEADER, "color": colour, "relpos": (-_SPACE / (width_of(text) or _SPACE), 0.5), "patchA": None},
    )  # fmt: skip
    note.set_label(END)


def label_point(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """Write `text` beside the point (x, y)."""
    note = axes.annotate(
        text, (x, y), (6, 6), textcoords="offset points", ha="center", va="center",
        arrowprops={**_LEADER, "color": colour},
    )  # fmt: skip
    note.set_label(POINT)


def place(figure: Any) -> None:
    """Give the panels their final size, and move the labels that would cover each other."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        _place_ends(axes, [note for note in axes.texts if note.get_label() == END])
        _place_points(axes, [note for note in axes.texts if note.get_label() == POINT])


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places in [low, high], in the order of `wanted`, at least `gap` apart and as near to `wanted` as can be.

    Where there is no room for all, they are closer, at equal distances.
    """
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], -index))  # of equals, the first is on top
    gap = min(gap, (high - low) / max(1, len(order) - 1))
    groups: list[list[float]] = []  # of neighbours without space between them: what each would want for the first
    for rank, index in enumerate(order):
        groups.append([wanted[index] - rank * gap])
        while len(groups) > 1 and _mean(groups[-2]) > _mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    firsts = [min(max(_mean(group), low), high - (len(order) - 1) * gap) for group in groups for _ in group]
    found = [0.0] * len(order)
    for rank, index in enumerate(order):
        found[index] = firsts[rank] + rank * gap
    return found


def _box(note: Any) -> Any:
    """Where the text of an annotation lies, in pixels, without its arrow."""
    from matplotlib.text import Text

    return Text.get_window_extent(note)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _place_ends(axes: Any, notes: Sequence[Any]) -> None:
    if not notes:
        return
    bounds, pixels = axes.get_window_extent(), axes.transData
    height = max(_box(note).height for note in notes)
    wanted = [pixels.transform(note.xy)[1] for note in notes]
    for note, y in zip(notes, spread(wanted, _GAP * height, bounds.y0, bounds.y1), strict=True):
        note.set_position((1.02, pixels.inverted().transform((0, y))[1]))


def _place_points(axes: Any, notes: Sequence[Any]) -> None:
    """Each label takes the place nearest to its point where it covers neither another label nor a labelled point."""
    scale = 72 / axes.figure.dpi
    bounds = Box(*(scale * value for value in axes.get_window_extent().extents))
    points = [tuple(scale * value for value in axes.transData.transform(note.xy)) for note in notes]
    taken = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for note, (x, y) in zip(notes, points, strict=True):
        size = _box(note)
        width, height = scale * size.width + 2, scale * size.height
        for ring, dx, dy in _around(width, height):
            box = Box(x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            if box.lies_in(bounds) and not any(box.meets(other) for other in taken):
                note.set_position((dx, dy))
                note.arrow_patch.set_visible(ring > 0)
                taken.append(box)
                break


def _around(width: float, height: float) -> Iterable[tuple[int, float, float]]:
    """Offsets of a label from its point, in points, on wider and wider rings; to the upper right first."""
    for ring in range(60):
        for turn in range(8 if ring == 0 else 16):
            angle = math.pi / 4 + turn * math.pi / (4 if ring == 0 else 8)
            yield ring, math.cos(angle) * (width / 2 + 5 + 4 * ring), math.sin(angle) * (height / 2 + 4 + 4 * ring)
