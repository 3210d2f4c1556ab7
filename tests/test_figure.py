"""The figure of a run shows its numbers, and equal numbers give equal bytes."""

from __future__ import annotations

from typing import Any

import pytest

from advbench import figure

ROWS: list[dict[str, Any]] = [
    {"epoch": 1, "loss": 2.0, "terms": {"ce": 1.5, "kl": 0.5}, "clean": 0.5, "robust": 0.25, "fgsm": 0.3},
    {"epoch": 2, "loss": 1.0, "terms": {"ce": 0.75, "kl": 0.25}, "clean": 0.75, "robust": 0.5, "fgsm": 0.6},
    {"epoch": 3, "loss": 0.5, "terms": {"ce": 0.375, "kl": 0.125}, "clean": 1.0, "robust": 0.4, "fgsm": 0.7},
]


def drawn(rows: list[dict[str, Any]], best: int) -> bytes:
    with figure.panels(2, "a run") as (drawing, axes):
        figure.draw_training(*axes, rows, best)
        return figure.render(drawing)


def test_lines_are_the_numbers() -> None:
    with figure.panels(2, "a run") as (_, (losses, accuracies)):
        figure.draw_training(losses, accuracies, ROWS, 2)
        lines = {line.get_label(): list(line.get_ydata()) for axes in (losses, accuracies) for line in axes.lines}
        assert lines["loss"] == [2.0, 1.0, 0.5] and lines["ce"] == [1.5, 0.75, 0.375] and lines["kl"][0] == 0.5
        assert lines["clean"] == [50, 75, 100] and lines["PGD"] == [25, 50, 40] and lines["FGSM"][2] == 70
        assert [list(axes.lines[-1].get_xdata()) for axes in (losses, accuracies)] == [[2, 2], [2, 2]]


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert drawn(ROWS, 2) == drawn(ROWS, 2) != drawn(ROWS, 3)


@pytest.mark.parametrize("gone", [("clean", "robust", "fgsm"), ("fgsm",)])
def test_without_validation(gone: tuple[str, ...]) -> None:
    assert b"<svg" in drawn([{name: value for name, value in row.items() if name not in gone} for row in ROWS[:1]], 1)
