"""What the Markdown tables and the page say in the same words, as text that each escapes in its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.leaderboard.ranking import Board
from advbench.record import Record, slug
from advbench.statistics import decimals


def percent(value: float, n: int) -> str:
    """A fraction as percent, such as "53.2"."""
    return f"{100 * value:.{decimals(n)}f}"


def interval(low: float, high: float, n: int) -> str:
    """Fractions as percent, such as "50.1–56.3"."""
    return f"{percent(low, n)}–{percent(high, n)}"


def spread(found: tuple[float, float] | None, n: int) -> str:
    """Mean and standard deviation, in percent; empty for None."""
    return "" if found is None else f"{percent(found[0], n)} ± {percent(found[1], n)}"


def count(value: float | None) -> str:
    """Such as "9,398"; empty for None."""
    return "" if value is None else f"{value:,.0f}"


def listed(settings: Mapping[str, object]) -> str:
    """The settings of an attack, such as "eot 1, steps 100"."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "set")


def left_out(board: Board) -> list[tuple[str, Sequence[Record], str]]:
    """What was done with records that are not shown, which ones, and what else there is to say of them."""
    found: list[tuple[str, Sequence[Record], str]] = [
        ("measured again since, in the same way", board.repeated, ""),
        ("replaced by another record of the same model and images", board.superseded, ""),
        *(("retired", (one,), f"{one.model.title}: {why}") for one, why in board.retired),
    ]
    return [one for one in found if one[1]]


def link(record: Record) -> str:
    """Where the JSON of `record` lies, from the leaderboard's folder."""
    return f"records/{slug(record.dataset.name)}/{record.norm}/{record.id}.json"
