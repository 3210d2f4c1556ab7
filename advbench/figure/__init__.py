"""Figures as SVG, PNG or PDF. The same numbers give the same bytes on every machine.

`panels` makes the figure, the functions `draw_...` fill its panels, `legend` names what they drew, and `render` gives
the bytes. Text is 9 points high, never cut, and covers no other.
"""

from advbench.figure.canvas import HALF, KINDS, digest, legend, legend_lines, panels, render, same, style
from advbench.figure.curves import MAX_BANDS, Line, Point, Proved, draw_curves, draw_front, draw_proved, front
from advbench.figure.differences import Difference, Gap, draw_gaps, draw_rows
from advbench.figure.table import ROW, draw_dots, draw_grid
from advbench.figure.text import fit, wrapped
from advbench.figure.training import draw_training

__all__ = [
    "HALF",
    "KINDS",
    "MAX_BANDS",
    "ROW",
    "Difference",
    "Gap",
    "Line",
    "Point",
    "Proved",
    "digest",
    "draw_curves",
    "draw_dots",
    "draw_front",
    "draw_gaps",
    "draw_grid",
    "draw_proved",
    "draw_rows",
    "draw_training",
    "fit",
    "front",
    "legend",
    "legend_lines",
    "panels",
    "render",
    "same",
    "style",
    "wrapped",
]
