"""A training by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advbench.figure.canvas import style
from advbench.figure.placing import label_end
from advbench.figure.text import fit

_LOG_FROM = 30.0  # largest over smallest loss, from which their axis is logarithmic


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
    for axes, label, values in series:
        found = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
        colour, dash = style(sum(line.get_label() != _MARK for line in axes.lines))
        marker = "o" if len(found) < 30 else ""
        axes.plot(*zip(*found, strict=True), dash, color=colour, marker=marker, markersize=3, label=label)
        label_end(axes, *found[-1], fit(label, 110), colour)
    every = [value for axes, _, values in series if axes is losses for value in values if value is not None]
    if min(every) > 0 and max(every) / min(every) > _LOG_FROM:
        losses.set_yscale("log")
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter("")
    losses.set(ylabel="loss", title="loss on the training images" + (", and its terms" if len(terms) > 1 else ""))
    measured = "on the held-out images" if accuracies.lines else "was not measured: no images were held out"
    accuracies.set(ylabel="accuracy (%)", ylim=(-2, 102), title=f"accuracy {measured}")
    what = "the best, whose weights are kept" if accuracies.lines else "whose weights are kept"
    for axes in (losses, accuracies):
        axes.set(xlabel=f"epoch (dotted: {best}, {what})")
        axes.axvline(best, color="0.4", linewidth=1, linestyle=":", zorder=1, label=_MARK)
        axes.xaxis.get_major_locator().set_params(integer=True)


_MARK = "the best epoch"
