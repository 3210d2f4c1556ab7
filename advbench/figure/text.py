"""Text in figures: what the font can show, on one line, and as long as there is room for it."""

from __future__ import annotations

from functools import cache

from advbench.escape import visible, without_middle

SIZE = 9.0  # points, of all text


def plain(text: str) -> str:
    """`text` on one line, inert, with ? for the characters that the font lacks."""
    known = _characters()
    return "".join(char if ord(char) in known else "?" for char in visible(text))


def fit(text: str, width: float, size: float = SIZE) -> str:
    """`plain(text)`, without as much of its middle as makes it at most `width` points wide."""
    text = plain(text)
    if width_of(text, size) <= width:
        return text
    low, high = 0, len(text)  # characters that are kept: `low` of them fit, `high` do not
    while high - low > 1:
        kept = (low + high) // 2
        low, high = (kept, high) if width_of(without_middle(text, kept, "…"), size) <= width else (low, kept)
    return without_middle(text, low, "…")


def wrapped(text: str, width: float, size: float = SIZE) -> list[str]:
    """`plain(text)` as lines of at most `width` points; a word that is longer is shortened in its middle."""
    lines: list[str] = []
    for word in plain(text).split():
        longer = f"{lines[-1]} {word}" if lines else ""
        if longer and width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(fit(word, width, size))
    return lines


@cache
def width_of(text: str, size: float = SIZE) -> float:
    """The width in points; pictures of pixels need up to a twentieth more than outlines."""
    from matplotlib.textpath import TextPath

    return 1.05 * float(TextPath((0, 0), text, size=size).get_extents().width) if text.strip() else 0.0


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
