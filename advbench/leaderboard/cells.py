"""Numbers of the Markdown tables and of the page, as text."""

from __future__ import annotations

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


def link(record: Record) -> str:
    """Where the JSON of `record` lies, from the leaderboard's folder."""
    return f"records/{slug(record.dataset.name)}/{record.norm}/{record.id}.json"
