"""Differences to a baseline: of a few models along eps, of many as one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advbench.figure.canvas import NAMES, percent, style
from advbench.figure.curves import set_ticks
from advbench.figure.text import fit, plain


@dataclass(frozen=True)
class Gap:
    """Differences of accuracy (fractions) along eps, with their intervals; `place` as in `Line`."""

    eps: Sequence[float]
    difference: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    place: int


@dataclass(frozen=True)
class Difference:
    """One difference of accuracy (a fraction) with its interval, and whether it is `significant`."""

    value: float
    low: float
    high: float
    significant: bool


def draw_gaps(axes: Any, gaps: Sequence[Gap], xlabel: str, ticks: Sequence[tuple[float, str]]) -> None:
    """Draw differences in percentage points with their intervals, in the colours of `draw_curves`, side by side."""
    axes.axhline(0, color="0.5", linewidth=1)
    span = max((eps for eps, _ in ticks), default=1.0) or 1.0
    for index, gap in enumerate(gaps):
        colour, dash = style(gap.place)
        eps = [value + 0.015 * span * (index - (len(gaps) - 1) / 2) for value in gap.eps]
        axes.errorbar(
            eps, percent(gap.difference), _errors(gap.difference, gap.low, gap.high),
            color=colour, linestyle=dash, marker="o", markersize=4, capsize=3,
        )  # fmt: skip
    axes.set(xlabel=fit(xlabel, 72 * 4), ylabel="difference (points)")
    set_ticks(axes, ticks)


def draw_rows(panels: Sequence[Any], names: Sequence[str], columns: Mapping[str, Sequence[Difference]]) -> None:
    """Draw one panel for each of `columns`, and in it one row for each of `names`, from above.

    A point is filled where the difference is significant, and hollow elsewhere. Differences are in percentage points.
    """
    rows = list(range(len(names)))
    for axes, (title, found) in zip(panels, columns.items(), strict=True):
        axes.axvline(0, color="0.5", linewidth=1)
        values = [one.value for one in found]
        low, high = percent([one.low for one in found]), percent([one.high for one in found])
        colours = [style(int(value < 0))[0] for value in values]
        axes.hlines(rows, low, high, colors=colours, linewidth=1)
        fills = [colour if one.significant else "white" for colour, one in zip(colours, found, strict=True)]
        axes.scatter(percent(values), rows, s=20, edgecolors=colours, facecolors=fills, zorder=3)
        axes.set(title=plain(title), xlabel="points")
        axes.set_yticks(rows, [fit(name, NAMES) for name in names] if axes is panels[0] else [""] * len(names))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)


def _errors(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """How far the ends of intervals lie below and above the middles, in percentage points."""
    below = [max(0.0, 100 * (m - end)) for m, end in zip(middle, low, strict=True)]
    above = [max(0.0, 100 * (end - m)) for m, end in zip(middle, high, strict=True)]
    return [below, above]
