"""Figures show their numbers, equal numbers give equal bytes, and no text is cut or covers another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import made as made_record
from matplotlib.text import Text
from measurements import fallen, made, side

from advbench import figure, leaderboard
from advbench.compare import compare, plot
from advbench.figure.placing import END, POINT, spread
from advbench.figure.text import fit, plain, wrapped
from advbench.record import Flag, Record, Trained

ROWS: list[dict[str, Any]] = [
    {"epoch": 1, "loss": 2.0, "terms": {"ce": 1.5, "kl": 0.5}, "clean": 0.5, "robust": 0.25, "fgsm": 0.3},
    {"epoch": 2, "loss": 1.0, "terms": {"ce": 0.75, "kl": 0.25}, "clean": 0.75, "robust": 0.5, "fgsm": 0.6},
    {"epoch": 3, "loss": 0.5, "terms": {"ce": 0.375, "kl": 0.125}, "clean": 1.0, "robust": 0.4, "fgsm": 0.7},
]
NAMES = [
    "A name that says everything of how the model was trained, and when, " * 3,
    "W" * 90,
    "é Ω 模型 $x_1$",
]

Draw = Callable[[Callable[[], object]], Any]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Runs a function that draws one figure, and returns the figure as it was rendered."""
    render, seen = figure.render, list[Any]()

    def recorded(drawing: Any, *rest: Any) -> bytes:
        seen.append(drawing)
        return render(drawing, *rest)

    def of(make: Callable[[], object]) -> Any:
        monkeypatch.setattr(figure, "render", recorded)
        make()
        (drawing,) = seen
        return drawing

    return of


def apart(boxes: list[Any]) -> bool:
    return not any(
        min(one.x1, other.x1) - max(one.x0, other.x0) > 0.5 and min(one.y1, other.y1) - max(one.y0, other.y0) > 0.5
        for one, other in combinations(boxes, 2)
    )


def labels_of(axes: Any, kind: str) -> list[Any]:
    return [note for note in axes.texts if note.get_label() == kind]


def tick_labels(axes: Any) -> Iterator[list[Any]]:
    """The texts of each axis that lie in its limits."""
    for place, axis in enumerate((axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        yield [one for one in axis.get_ticklabels() if one.get_text() and low <= one.get_position()[place] <= high]


def check_geometry(drawing: Any) -> None:
    """Nothing is outside of the canvas, and nothing covers anything else."""
    inner = drawing.get_tightbbox()
    width, height = drawing.get_size_inches()
    assert inner.x0 >= -0.01 and inner.x1 <= width + 0.01 and inner.y0 >= -0.01 and inner.y1 <= height + 0.01
    panels = [axes.get_tightbbox() for axes in drawing.axes]
    assert apart(
        [*panels, drawing._suptitle.get_window_extent(), *(one.get_window_extent() for one in drawing.legends)]
    )
    for axes in drawing.axes:
        for kind in (END, POINT):
            assert apart([Text.get_window_extent(note) for note in labels_of(axes, kind)])
        for texts in tick_labels(axes):
            assert apart([text.get_window_extent() for text in texts])
            assert not any("mathdefault" in text.get_text() for text in texts)  # a formula that is not set as one
    for legend in drawing.legends:
        assert apart([text.get_window_extent() for text in legend.get_texts()])


def board(count: int, *, names: bool = False, alike: bool = False, eps: str = "0,4/255,8/255") -> list[Record]:
    """Records of `count` models, every seventh of which is flagged."""
    found = []
    for index in range(count):
        share = 60.0 if alike else 60 - 0.37 * index
        name = NAMES[index % 3] if names else None
        grid = [90.0, share, share / 2][-len(eps.split(",")) :]
        trained = Trained(method=f"method-{index % 5}", seed=index, eps=8 / 255, eps_text="8/255")
        record, _ = made_record(grid, eps=eps, spec=f"runs/{index}", name=name, trained=trained)
        flags = (Flag(name="zero-gradient", severity="broken"),) if index % 7 == 6 else ()
        found.append(record.model_copy(update={"flags": flags}))
    return found


@pytest.mark.parametrize(
    "given",
    [{"count": 3}, {"count": 20, "names": True}, {"count": 90}, {"count": 12, "alike": True},
     {"count": 2, "eps": "8/255"}],
)  # fmt: skip
def test_the_figure_of_a_leaderboard_can_be_read(draw: Draw, given: dict[str, Any]) -> None:
    records = board(**given)
    drawing = draw(lambda: leaderboard.render(records))
    check_geometry(drawing)
    (legend,) = drawing.legends
    names, note = [text.get_text() for text in legend.get_texts()], legend.get_title().get_text()
    assert len(names) == min(12, len(records))
    assert (f"12 of {len(records)} models are named; the rest grey" in note) == (len(records) > 12)
    (table,) = leaderboard.board(records, {}).tables
    ranked = len(table.ranked)
    marks = [name.partition(".")[0] for name in names]
    assert marks == [str(place + 1) if place < ranked else "abc"[place - ranked] for place in range(len(names))]
    assert all(name.endswith("(not ranked)") == mark.isalpha() for name, mark in zip(names, marks, strict=True))
    for kind, axes in zip((END, POINT), drawing.axes, strict=True):
        assert sorted(note.get_text() for note in labels_of(axes, kind)) == sorted(marks)


def test_labels_that_collide_would_be_noticed(draw: Draw) -> None:
    drawing = draw(lambda: leaderboard.render(board(3)))
    first, second = labels_of(drawing.axes[1], POINT)[:2]
    second.xy, (x, y) = first.xy, first.get_position()
    second.set_position((x + 2, y))
    with pytest.raises(AssertionError):
        check_geometry(drawing)
    second.set_text("")
    drawing.axes[0].set_ylabel("cut " * 60)
    with pytest.raises(AssertionError):
        check_geometry(drawing)


@pytest.mark.parametrize("count", [4, 21])
def test_the_figure_of_a_comparison_can_be_read(draw: Draw, tmp_path: Path, count: int) -> None:
    sides = [
        side(f"m{index}", made(fallen([90, 70 - index, 50 - index], 100), spec=f"runs/{index}",
             name=f"{NAMES[index % 3]} {index}")) for index in range(count)
    ]  # fmt: skip
    found = compare(sides)
    drawing = draw(lambda: plot(found, tmp_path / "c.svg"))
    check_geometry(drawing)
    if count > 4:
        assert len(drawing.axes[0].get_yticklabels()) == count - 1 and len(drawing.axes) == 3
        assert "all 20 models together (Bonferroni)" in drawing.legends[0].get_title().get_text()
    else:
        assert len(drawing.legends[0].get_texts()) == count


def drawn(rows: list[dict[str, Any]], best: int) -> bytes:
    with figure.panels(2, "a run") as (drawing, axes):
        figure.draw_training(*axes, rows, best)
        found = figure.render(drawing)
        check_geometry(drawing)
    return found


def test_lines_are_the_numbers() -> None:
    with figure.panels(2, "a run") as (_, (losses, accuracies)):
        figure.draw_training(losses, accuracies, ROWS, 2)
        lines = {line.get_label(): list(line.get_ydata()) for axes in (losses, accuracies) for line in axes.lines}
        assert lines["loss"] == [2.0, 1.0, 0.5] and lines["ce"] == [1.5, 0.75, 0.375] and lines["kl"][0] == 0.5
        assert lines["clean"] == [50, 75, 100] and lines["PGD"] == [25, 50, 40] and lines["FGSM"][2] == 70
        assert [list(axes.lines[-1].get_xdata()) for axes in (losses, accuracies)] == [[2, 2], [2, 2]]
        assert [note.get_text() for note in labels_of(losses, END)] == ["loss", "ce", "kl"]
        assert "2, the best" in accuracies.get_xlabel()


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert drawn(ROWS, 2) == drawn(ROWS, 2) != drawn(ROWS, 3)


@pytest.mark.parametrize("gone", [("clean", "robust", "fgsm"), ("fgsm",)])
def test_without_validation(gone: tuple[str, ...]) -> None:
    assert b"<svg" in drawn([{name: value for name, value in row.items() if name not in gone} for row in ROWS[:1]], 1)


def test_many_terms_of_very_different_size_are_named_side_by_side() -> None:
    terms = {f"a_term_with_a_long_name_{index}": 10.0**-index for index in range(5)} | {"tiny": 1e-4, "equal": 1e-4}
    assert drawn([{"epoch": epoch, "loss": 2.0, "terms": terms, "clean": 0.5} for epoch in range(1, 60)], 30)


def test_labels_are_spread_as_little_as_can_be() -> None:
    assert spread([5, 1, 9], 2, 0, 10) == [5, 1, 9]
    assert spread([5, 5, 5], 2, 0, 10) == [7, 5, 3]  # the first on top
    assert spread([0, 0, 10], 2, 0, 10) == [2, 0, 10]
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = sorted(spread(list(rng.uniform(0, 10, 8)), 1, 0, 10))
        assert found[0] >= 0 and found[-1] <= 10 + 1e-9
        assert all(after - before >= 1 - 1e-9 for before, after in pairwise(found))
    assert sorted(spread([5] * 21, 1, 0, 10)) == pytest.approx([index / 2 for index in range(21)])


def test_long_text_loses_its_middle_and_what_the_font_lacks() -> None:
    assert fit("short", 100) == "short"
    shortened = fit("the beginning" + "W" * 200 + "the end", 100)
    assert shortened.startswith("the b") and shortened.endswith("the end") and "…" in shortened
    assert plain("é Ω 模\x1b\n$x$") == "é Ω ?\\x1b\\x0a$x$"
    assert wrapped("one two " * 20 + "W" * 200, 200)[-1].count("W") < 30
    assert " ".join(wrapped("one two three four", 60)) == "one two three four"
