"""A table as a figure: each cell a colour and a number, or each row a line of points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advbench.figure.canvas import NAMES, WIDTH, style
from advbench.figure.text import fit, plain

ROW = 0.25  # inches of a row, for the height of `panels`


def draw_grid(
    axes: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    text: Callable[[float], str],
    top: float,
    xlabel: str = "",
    ylabel: str = "",
    framed: Mapping[int, int] | None = None,
) -> None:
    """Draw `values`, from 0 (white) to `top` (blue), with their `text`; NaN is left empty.

    `framed`: for the number of a row, the number of the column whose cell has a frame.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    colours = LinearSegmentedColormap.from_list("blue", ["white", style(0)[0]])
    axes.imshow(values, cmap=colours, vmin=0, vmax=top, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if not math.isnan(value):
                axes.text(x, y, text(value), ha="center", va="center", color="white" if value > 0.9 * top else "black")
    for y, x in (framed or {}).items():
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.5))
    upright = 5.2 * sum(map(len, columns)) > 72 * (WIDTH - 3)  # where names do not fit beside each other
    axes.set_xticks(range(len(columns)), [fit(name, NAMES) for name in columns], rotation=90 if upright else 0)
    axes.set_yticks(range(len(rows)), [fit(name, NAMES) for name in rows])
    axes.set(xlabel=plain(xlabel), ylabel=plain(ylabel))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def draw_dots(axes: Any, rows: Sequence[str], series: Mapping[str, Sequence[float]], xlabel: str) -> list[Any]:
    """Draw a point in each row for each of `series`, and return what to name in the legend. No `rows`: no names."""
    places = range(max(map(len, series.values()), default=0))
    drawn = []
    for index, values in enumerate(series.values(), start=0 if len(series) > 1 else 6):  # a single one is black
        shown = [(value, place) for place, value in zip(places, values, strict=True) if not math.isnan(value)]
        settings = {"marker": "oDs^v<>"[index % 7], "linestyle": "", "markersize": 6, "color": style(index)[0]}
        drawn += axes.plot([value for value, _ in shown], [place for _, place in shown], **settings)
    axes.set_yticks(list(places), [fit(name, NAMES) for name in rows] or [""] * len(places))
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=plain(xlabel))
    return drawn
