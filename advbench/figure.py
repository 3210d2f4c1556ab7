"""Curves and scatter plots as SVG, PNG or PDF. The same numbers give the same bytes on every machine."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

KINDS = ("svg", "png", "pdf")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """Accuracy (fractions) of one model along eps, with its interval.

    `place` counts from 0 and sets the line's number and colour. None draws it grey, without name and band.
    """

    label: str
    eps: Sequence[float]
    accuracy: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    place: int | None


@dataclass(frozen=True)
class Point:
    """One model's clean and robust accuracy (fractions); `place` as in `Line`. A `doubted` point is drawn hollow."""

    clean: float
    robust: float
    place: int | None
    doubted: bool = False


@dataclass(frozen=True)
class Gap:
    """Differences of accuracy (fractions) along eps, with their intervals; `place` as in `Line`."""

    eps: Sequence[float]
    difference: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    place: int


@contextmanager
def panels(count: int, title: str) -> Iterator[tuple[Any, list[Any]]]:
    """A matplotlib figure and its `count` axes, side by side, independent of the user's matplotlib settings."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Text becomes outlines, so that no font is needed to show it. Without parse_math, a $ in a name stays a $.
        matplotlib.rcParams.update({"svg.hashsalt": "advbench", "svg.fonttype": "path", "text.parse_math": False})
        figure = Figure(figsize=(5.5 * count, 4.2))
        figure.subplots_adjust(left=0.6 / (5.5 * count), right=1 - 0.15 / (5.5 * count), bottom=0.14, top=0.9)
        axes = list(figure.subplots(1, count, squeeze=False)[0])
        figure.suptitle(_plain(title), fontsize=11)
        for one in axes:
            one.grid(alpha=0.25, linewidth=0.5)
            one.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def draw_curves(
    axes: Any,
    lines: Sequence[Line],
    xlabel: str,
    ticks: Sequence[tuple[float, str]] = (),
    mark: float | None = None,
    names: Any = None,
) -> None:
    """Draw accuracy in percent against eps. `ticks` label eps on the axis; `mark` is the reference eps.

    `names`: axes that hold the legend and nothing else, where it is long; None: it lies on the curves.
    """
    from matplotlib.collections import LineCollection

    if mark is not None:
        axes.axvline(mark, color="0.6", linewidth=0.8, linestyle=":")
    faint = [list(zip(line.eps, _percent(line.accuracy), strict=True)) for line in lines if line.place is None]
    axes.add_collection(LineCollection(faint, colors="0.8", linewidths=0.7, zorder=1))
    for line in lines:
        if line.place is None:
            continue
        colour, dash = style(line.place)
        settings = {"color": colour, "linewidth": 1.5, "marker": "o", "markersize": 3}
        axes.plot(line.eps, _percent(line.accuracy), dash, label=f"{line.place + 1}. {_plain(line.label)}", **settings)
        axes.fill_between(line.eps, _percent(line.low), _percent(line.high), color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel=_plain(xlabel), ylabel="accuracy (%)", ylim=(-2, 102))
    axes.autoscale_view(scaley=False)
    if ticks:
        axes.set_xticks([value for value, _ in ticks], [_plain(text) for _, text in ticks])
    if names is not None:
        names.axis("off")
    drawn, labels = axes.get_legend_handles_labels()
    if labels:
        where = "upper right" if names is None else "center left"  # falling curves leave the former free
        (names or axes).legend(drawn, labels, fontsize=7, framealpha=0.7, edgecolor="none", loc=where)


def draw_front(axes: Any, points: Sequence[Point], ylabel: str) -> None:
    """Draw robust against clean accuracy in percent and the Pareto front; colours and numbers as in `draw_curves`."""
    best = front(points)
    if best:
        x = [100 * point.clean for point in best]
        y = [100 * point.robust for point in best]
        axes.step([0, *x], [y[0], *y], where="pre", color="0.5", linewidth=1, zorder=1)
        axes.plot([x[-1], x[-1]], [y[-1], 0], color="0.5", linewidth=1, zorder=1)
    edges = ["0.8" if point.place is None else style(point.place)[0] for point in points]
    fills = ["none" if point.doubted else edge for point, edge in zip(points, edges, strict=True)]
    x, y = _percent([point.clean for point in points]), _percent([point.robust for point in points])
    axes.scatter(x, y, s=36, edgecolors=edges, facecolors=fills, zorder=2)
    for point in points:
        if point.place is not None:
            where = (100 * point.clean, 100 * point.robust)
            axes.annotate(str(point.place + 1), where, (4, 4), textcoords="offset points", fontsize=7)
    axes.margins(0.08)
    axes.set(xlabel="clean accuracy (%)", ylabel=_plain(ylabel))
    if points:
        low_x, low_y = min(p.clean for p in points), min(p.robust for p in points)
        axes.set_xlim(left=100 * max(0.0, low_x - 0.05))
        axes.set_ylim(bottom=100 * max(0.0, low_y - 0.05))


def draw_gaps(axes: Any, gaps: Sequence[Gap], xlabel: str, ylabel: str, ticks: Sequence[tuple[float, str]]) -> None:
    """Draw differences in percentage points with their intervals, in the colours of `draw_curves`."""
    axes.axhline(0, color="0.5", linewidth=1)
    for gap in gaps:
        middle = _percent(gap.difference)
        below = [m - low for m, low in zip(middle, _percent(gap.low), strict=True)]
        above = [high - m for m, high in zip(middle, _percent(gap.high), strict=True)]
        colour, dash = style(gap.place)
        errors = [[max(0.0, value) for value in side] for side in (below, above)]
        axes.errorbar(gap.eps, middle, errors, color=colour, linestyle=dash, marker="o", markersize=3, capsize=3)
    axes.set_xticks([value for value, _ in ticks], [_plain(text) for _, text in ticks])
    axes.set(xlabel=_plain(xlabel), ylabel=f"{_plain(ylabel)} (points)")


def draw_training(losses: Any, accuracies: Any, rows: Sequence[Mapping[str, Any]], best: int) -> None:
    """Draw a training run by epoch: the loss and its terms, and the accuracies on held-out images.

    `rows` are those of metrics.jsonl. A line marks the epoch `best` (from 1), whose weights are deployed.
    """
    epochs = [row["epoch"] for row in rows]
    terms = sorted({name for row in rows for name in row["terms"]})
    series = [(losses, "loss", [row["loss"] for row in rows])]
    if len(terms) > 1:
        series += [(losses, name, [row["terms"].get(name) for row in rows]) for name in terms]
    for name, label in (("clean", "clean"), ("robust", "PGD"), ("fgsm", "FGSM")):
        if any(name in row for row in rows):
            series.append((accuracies, label, [100 * row[name] if name in row else None for row in rows]))
    drawn = {id(losses): 0, id(accuracies): 0}
    for axes, label, values in series:
        colour, dash = style(drawn[id(axes)])
        drawn[id(axes)] += 1
        found = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
        marker = "o" if len(found) < 30 else ""
        axes.plot(*zip(*found, strict=True), dash, color=colour, marker=marker, markersize=3, label=_plain(label))
    accuracies.set(ylabel="accuracy on held-out images (%)", ylim=(-2, 102))
    losses.set(ylabel="loss")
    for axes in (losses, accuracies):
        axes.set(xlabel="epoch")
        axes.axvline(best, color="0.6", linewidth=0.8, linestyle=":", zorder=1)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, framealpha=0.7, edgecolor="none")
        axes.xaxis.get_major_locator().set_params(integer=True)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both accuracies, by rising clean accuracy, without the doubted ones."""
    kept: list[Point] = []
    for point in sorted((p for p in points if not p.doubted), key=lambda p: (-p.clean, -p.robust)):
        if not kept or point.robust > kept[-1].robust:
            kept.append(point)
    return kept[::-1]


def render(figure: Any, kind: str = "svg", description: str = "") -> bytes:
    """The figure's bytes, without a date. `description` goes into the metadata of an SVG."""
    metadata: dict[str, Any] = {"svg": {"Date": None, "Description": description}, "pdf": {"CreationDate": None}}
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=150, metadata=metadata.get(kind))
    return stream.getvalue()


def style(index: int) -> tuple[str, str]:
    """Colour and dash of the line or point number `index`, from 0."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _percent(fractions: Sequence[float]) -> list[float]:
    return [100 * value for value in fractions]


def _plain(text: str) -> str:
    """`text` in printable ASCII and at most 60 characters, because the font lacks glyphs for some names."""
    plain = text.encode("ascii", "replace").decode()
    plain = "".join(char if char.isprintable() else "?" for char in plain)
    return plain if len(plain) <= 60 else plain[:57] + "..."
