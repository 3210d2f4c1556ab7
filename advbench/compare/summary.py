"""What a Markdown summary shows of the measurements themselves: their curves, their flags and their protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from statistics import fmean

from advbench.compare.comparable import protocol
from advbench.compare.sides import Side
from advbench.escape import markdown
from advbench.record import Record, measured_eps
from advbench.statistics import decimals

_BARS = "▁▂▃▄▅▆▇█"


def of_measurements(sides: Sequence[Side]) -> list[str]:
    """The lines of three parts: a table of curves, a list of flags if there are any, and the protocol."""
    return [*_curves(sides), *_flags(sides), *_protocols(sides)]


def sparkline(fractions: Iterable[float]) -> str:
    """One bar for each fraction, of eight heights from 0 to 1."""
    return "".join(_BARS[min(7, int(8 * value))] for value in fractions)


def _curves(sides: Sequence[Side]) -> list[str]:
    """A row for each side: its curve as bars, and its accuracy (the mean over its models) at each eps of any side."""
    records = [unit.record for side in sides for unit in side.units]
    columns = [eps for eps in (0.0, *measured_eps(records)) if any(record.at(eps) for record in records)]
    texts = {eps: next(point.eps_text for record in records if (point := record.at(eps))) for eps in columns}
    lines = [
        "Accuracy in percent against eps:",
        "",
        f"| model | curve | {' | '.join(markdown(texts[eps]) for eps in columns)} |",
        f"|:--|:--|{'--:|' * len(columns)}",
    ]
    for side in sides:
        means: list[float | None] = []
        for eps in columns:
            points = [unit.record.at(eps) for unit in side.units]
            found = [point.accuracy for point in points if point is not None]
            means.append(fmean(found) if len(found) == len(points) else None)
        digits = decimals(side.units[0].record.n)
        cells = ["" if mean is None else f"{100 * mean:.{digits}f}" for mean in means]
        bars = sparkline(mean for mean in means if mean is not None)
        lines.append(f"| {markdown(side.label)} | {bars} | {' | '.join(cells)} |")
    return [*lines, ""]


def _flags(sides: Sequence[Side]) -> list[str]:
    severities = ("broken", "suspect", "note")
    lines = []
    for side in sides:
        for unit in side.units:
            for flag in sorted(unit.record.flags, key=lambda flag: severities.index(flag.severity)):
                shown = markdown(f"{side.label}: {unit.record.words(flag)}: {flag.detail}")
                lines.append(f"- **{shown}**" if flag.severity != "note" else f"- {shown}")
    if not lines:
        return []
    return ["Flags (`advbench list flags NAME` says what to do about one):", "", *dict.fromkeys(lines), ""]


def _protocols(sides: Sequence[Side]) -> list[str]:
    """One line for each protocol, without the names of the sides where all have the same."""
    found: dict[str, list[str]] = {}
    for side in sides:
        record = side.units[0].record
        found.setdefault(json.dumps(protocol(record)), []).append(side.label)
    records = {json.dumps(protocol(side.units[0].record)): side.units[0].record for side in sides}
    lines = []
    for key, labels in found.items():
        whose = "" if len(found) == 1 else f" of {', '.join(dict.fromkeys(labels))}"
        lines.append(markdown(f"Protocol{whose}: {_protocol(records[key])}."))
    return [line for text in lines for line in (text, "")]


def _protocol(record: Record) -> str:
    attacks = []
    for one in record.attack:
        listed = [f"{key} {value}" for key, value in one.settings.items() if value and key != "set"]
        attacks.append(f"{one.name} {one.version}" + (f" ({', '.join(listed)})" if listed else ""))
    indices, data = record.dataset.indices, record.dataset
    chosen = indices if isinstance(indices, str) else f"{len(indices)} chosen"
    return (
        f"{record.n:,} images of {data.name}, split {data.split} ({chosen}), norm {record.norm}, "
        f"{record.attack_name}: {'; '.join(attacks)}; engine {record.engine.name} {record.engine.version}, "
        f"{record.engine.precision}, seed {record.seed}"
    )
