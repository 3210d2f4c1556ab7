"""Tables as plain text, whole and aligned: for pipes, files and `print`."""

from __future__ import annotations

from collections.abc import Sequence


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    right = numeric_columns(rows, len(columns))

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ]
        return "  ".join(cells).rstrip()

    head = [title] if title else []
    return "\n".join([*head, line(columns), *map(line, rows)])


def numeric_columns(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """For each column, whether all its cells are numbers, fractions, intervals or percentages."""
    allowed = set("0123456789.,+-/%() e")
    return [bool(rows) and all(set(row[index]) <= allowed for row in rows) for index in range(columns)]
