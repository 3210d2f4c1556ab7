"""The figure around the drawings: its panels, title and legend, and its bytes."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from advbench.figure.placing import place
from advbench.figure.text import SIZE, fit, wrapped

KINDS = ("svg", "png", "pdf")
WIDTH = 9.6  # inches: text of 9 points has 12 pixels where a page shows the figure 900 pixels wide
HALF = 72 * (WIDTH / 2 - 0.75)  # points, of the title of one of two panels
NAMES = 165.0  # points, of the names beside rows
GREY = "0.8"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
_DASHES = ("-", "--", ":", "-.")
_LINE = 0.19  # inches of a line of text


@contextmanager
def panels(count: int, title: str, *, height: float = 3.6, below: int = 0) -> Iterator[tuple[Any, list[Any]]]:
    """A matplotlib figure and its `count` axes, side by side, independent of the user's matplotlib settings.

    `height`: inches of the panels with their labels; `below`: lines of text for which there is room below them.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Without parse_math, a $ in a name stays a $.
        matplotlib.rcParams.update({"text.parse_math": False, "font.size": SIZE, "axes.titlesize": SIZE})
        matplotlib.rcParams.update({"axes.titlelocation": "left", "legend.fontsize": SIZE})
        lines = wrapped(title, 72 * (WIDTH - 0.4), SIZE + 2)
        size = height + _LINE * (1.2 * len(lines) + below)
        figure = Figure(figsize=(WIDTH, size), layout="constrained")
        figure.suptitle("\n".join(lines), fontsize=SIZE + 2)
        axes = list(figure.subplots(1, count, squeeze=False)[0])
        for one in axes:
            one.grid(alpha=0.25, linewidth=0.5)
            one.set_axisbelow(True)
            one.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def legend(figure: Any, drawn: Sequence[Any], names: Sequence[str], note: str = "") -> None:
    """Names the artists `drawn` below the panels, and says `note` above the names. Takes `legend_lines` lines."""
    columns = _columns(len(names))
    room = 72 * (WIDTH - 0.4) / columns - 5 * SIZE
    figure.legend(
        drawn, [fit(name, room) for name in names], loc="outside lower left", ncols=columns, frameon=False,
        title=fit(note, 72 * (WIDTH - 0.4)) or None, title_fontsize=SIZE, alignment="left", handlelength=2.8,
    )  # fmt: skip


def legend_lines(count: int, note: str = "") -> int:
    """How many lines the legend of `count` names has."""
    return -(-count // _columns(count)) + bool(note) + 1  # and the space above


def render(figure: Any, kind: str = "svg", description: str = "") -> bytes:
    """The figure's bytes, without a date. `description` goes into the metadata of an SVG."""
    import matplotlib

    metadata: dict[str, Any] = {"svg": {"Date": None, "Description": description}, "pdf": {"CreationDate": None}}
    stream = io.BytesIO()
    # Text becomes outlines, so that no font is needed to show it.
    with matplotlib.rc_context({"svg.hashsalt": "advbench", "svg.fonttype": "path", "savefig.bbox": None}):
        place(figure)
        figure.savefig(stream, format=kind, dpi=150, metadata=metadata.get(kind))
    return stream.getvalue()


def digest(*numbers: object) -> str:
    """A description that is another one for other `numbers`, by which figures of the same numbers are known."""
    return f"numbers {hashlib.sha256(repr(numbers).encode()).hexdigest()}"


def same(existing: bytes, wanted: bytes) -> bool:
    """Whether two files are equal, or show the same numbers drawn by different versions of matplotlib."""
    if existing == wanted:
        return True
    numbers, version = rb"numbers [0-9a-f]{64}", rb"Matplotlib v[^,<]*"
    old, new = (tuple(re.search(pattern, content) for pattern in (numbers, version)) for content in (existing, wanted))
    if not all(old) or not all(new):
        return False
    old_numbers, old_version = (match[0] for match in old if match)
    new_numbers, new_version = (match[0] for match in new if match)
    return old_numbers == new_numbers and old_version != new_version


def style(index: int) -> tuple[str, str]:
    """Colour and dash of the line or point number `index`, from 0."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def percent(fractions: Sequence[float]) -> list[float]:
    return [100 * value for value in fractions]


def _columns(count: int) -> int:
    return 1 if count <= 2 else 2
