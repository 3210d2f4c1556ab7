"""Accuracy against eps, and robust against clean accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from advbench.figure.canvas import GREY, WIDTH, percent, style
from advbench.figure.placing import label_end, label_point
from advbench.figure.text import fit, plain

MAX_BANDS = 4  # of more curves, the intervals cover each other


@dataclass(frozen=True)
class Line:
    """Accuracy (fractions) of one model along eps, with its interval.

    `place` counts from 0 and sets colour and dash. None draws the line grey, without name and interval. `mark` is
    written at its end, and before its name. A `doubted` one has hollow markers.
    """

    label: str
    eps: Sequence[float]
    accuracy: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    place: int | None
    mark: str = ""
    doubted: bool = False

    @property
    def title(self) -> str:
        """The name, after the mark."""
        return f"{self.mark}. {self.label}" if self.mark else self.label


@dataclass(frozen=True)
class Proved:
    """The share (fractions) of one model that is proved to stand along eps, and its accuracy; `place` as in `Line`."""

    eps: Sequence[float]
    certified: Sequence[float]
    accuracy: Sequence[float]
    place: int


@dataclass(frozen=True)
class Point:
    """One model's clean and robust accuracy (fractions); the rest as in `Line`."""

    clean: float
    robust: float
    place: int | None
    mark: str = ""
    doubted: bool = False


def draw_curves(
    axes: Any, lines: Sequence[Line], xlabel: str, ticks: Sequence[tuple[float, str]] = (), mark: float | None = None
) -> list[Any]:
    """Draw accuracy in percent against eps, and return the curves that have a name, for the legend.

    `ticks` label eps on the axis, as many as there is room for; `mark` is the reference eps.
    """
    from matplotlib.collections import LineCollection

    if mark is not None:
        axes.axvline(mark, color="0.6", linewidth=0.8, linestyle=":")
    faint = [list(zip(line.eps, percent(line.accuracy), strict=True)) for line in lines if line.place is None]
    axes.add_collection(LineCollection(faint, colors=GREY, linewidths=0.7, zorder=1))
    named = [line for line in lines if line.place is not None]
    drawn = []
    for line in named:
        colour, dash = style(line.place or 0)
        fill = "white" if line.doubted else colour
        settings = {"color": colour, "linewidth": 1.5, "marker": "o", "markersize": 4, "markerfacecolor": fill}
        drawn += axes.plot(line.eps, percent(line.accuracy), dash, **settings)
        if len(named) <= MAX_BANDS:
            axes.fill_between(line.eps, percent(line.low), percent(line.high), color=colour, alpha=0.15, linewidth=0)
        if line.mark:
            label_end(axes, line.eps[-1], 100 * line.accuracy[-1], line.mark, colour)
    axes.set(xlabel=fit(xlabel, 72 * 4), ylabel="accuracy (%)", ylim=(-2, 102))
    axes.autoscale_view(scaley=False)
    set_ticks(axes, ticks, mark)
    return drawn


def draw_proved(axes: Any, bands: Sequence[Proved]) -> None:
    """Hatch what lies between the share that is proved to stand and the accuracy, in percent."""
    for band in bands:
        colour, _ = style(band.place)
        low, high = percent(band.certified), percent(band.accuracy)
        axes.fill_between(band.eps, low, high, facecolor="none", edgecolor=colour, hatch="///", alpha=0.35, linewidth=0)
        axes.plot(band.eps, low, color=colour, linewidth=1, linestyle=(0, (1, 1)))


def draw_front(axes: Any, points: Sequence[Point], ylabel: str) -> None:
    """Draw robust against clean accuracy in percent and the Pareto front; colours and marks as in `draw_curves`."""
    best = front(points)
    if best:
        x = [100 * point.clean for point in best]
        y = [100 * point.robust for point in best]
        axes.step([0, *x], [y[0], *y], where="pre", color="0.5", linewidth=1, zorder=1)
        axes.plot([x[-1], x[-1]], [y[-1], 0], color="0.5", linewidth=1, zorder=1)
    edges = [GREY if point.place is None else style(point.place)[0] for point in points]
    fills = ["white" if point.doubted else edge for point, edge in zip(points, edges, strict=True)]
    order = sorted(range(len(points)), key=lambda index: points[index].place is not None)  # the grey ones below
    x, y = (percent([getattr(points[index], of) for index in order]) for of in ("clean", "robust"))
    colours = {"edgecolors": [edges[index] for index in order], "facecolors": [fills[index] for index in order]}
    axes.scatter(x, y, s=30, zorder=2, **colours)
    for point in points:
        if point.mark:
            label_point(axes, 100 * point.clean, 100 * point.robust, point.mark, "0.4")
    axes.margins(0.08)
    axes.set(xlabel="clean accuracy (%)", ylabel=fit(ylabel, 72 * 3))
    if points:
        axes.set_xlim(*_limits([100 * point.clean for point in points]))
        axes.set_ylim(*_limits([100 * point.robust for point in points]))


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both accuracies, by rising clean accuracy, without the doubted ones."""
    kept: list[Point] = []
    for point in sorted((p for p in points if not p.doubted), key=lambda p: (-p.clean, -p.robust)):
        if not kept or point.robust > kept[-1].robust:
            kept.append(point)
    return kept[::-1]


def set_ticks(axes: Any, ticks: Sequence[tuple[float, str]], mark: float | None = None) -> None:
    """Put `ticks` on the x axis, and the texts for which there is room: that of `mark` and those at the ends first."""
    if not ticks:
        return
    left, right = axes.get_xlim()
    room = 72 * (WIDTH / len(axes.figure.axes) - 1.1) / (right - left)  # points for each unit of eps
    ends = (0, len(ticks) - 1)
    first = sorted(range(len(ticks)), key=lambda index: (ticks[index][0] != mark, index not in ends, index))
    kept: list[int] = []
    for index in first:
        needed = {other: 2.7 * (len(ticks[index][1]) + len(ticks[other][1])) + 5 for other in kept}
        if all(room * abs(ticks[index][0] - ticks[other][0]) >= width for other, width in needed.items()):
            kept.append(index)
    texts = [plain(text) if index in kept else "" for index, (_, text) in enumerate(ticks)]
    axes.set_xticks([value for value, _ in ticks], texts)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The axis for `values` in percent, with room around them for labels."""
    room = max(5.0, 0.12 * (max(values) - min(values)))
    return max(-2.0, min(values) - room), min(102.0, max(values) + room)
