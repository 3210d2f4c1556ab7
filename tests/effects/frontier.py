"""Frontiers: robust against clean accuracy, a line for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from findings import BySeed

from advbench.figure.canvas import digest, legend, legend_lines, panels, render, style
from advbench.figure.placing import label_point


class Point(NamedTuple):
    """Runs of one setting: its value, and their accuracies in percent."""

    setting: str
    clean: BySeed
    robust: BySeed


Frontiers = Mapping[str, Sequence[Point]]  # by the method's name


def draw_frontiers(regimes: Mapping[str, Frontiers], title: str, kind: str = "svg") -> bytes:
    """A panel for each regime: means over the seeds, bars of one standard deviation, lines by rising clean accuracy.

    A line of the same name is drawn alike in each regime.
    """
    names = list(dict.fromkeys(name for methods in regimes.values() for name in methods))
    drawn: dict[str, Any] = {}
    with panels(len(regimes), title, height=3.9, below=legend_lines(len(names))) as (figure, every):
        for axes, (regime, methods) in zip(every, regimes.items(), strict=True):
            drawn |= {name: _line(axes, *style(names.index(name)), points) for name, points in methods.items()}
            axes.set(title=regime, xlabel="clean accuracy (%)", ylabel="robust accuracy (%)")
            axes.margins(0.12)
        legend(figure, [drawn[name] for name in names], names)
        return render(figure, kind, digest(title, regimes))


def _line(axes: Any, colour: str, dash: str, points: Sequence[Point]) -> Any:
    """The drawn line of a method."""
    ordered = sorted(points, key=lambda point: mean(point.clean.values()))
    x, y = ([mean(getattr(point, of).values()) for point in ordered] for of in ("clean", "robust"))
    dx, dy = ([stdev(getattr(point, of).values()) for point in ordered] for of in ("clean", "robust"))
    axes.errorbar(x, y, yerr=dy, xerr=dx, color=colour, linestyle="none", alpha=0.35, linewidth=1)
    (line,) = axes.plot(x, y, color=colour, linestyle=dash, marker="o", markersize=4)
    for at, point in zip(zip(x, y, strict=True), ordered, strict=True):
        label_point(axes, *at, point.setting, colour)
    return line
