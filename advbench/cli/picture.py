"""A grid of small captioned images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advbench.figure import fit, wrapped

_MAX_LINES = 8
_PANEL_INCHES = 1.15
_SIZE = 8.0  # points, of captions


@dataclass(frozen=True)
class Panel:
    """An image (C, H, W) in [0, 1] with C of 1 or 3, its caption, and whether the caption is red."""

    image: NDArray[Any]
    caption: str
    alarming: bool = False


def picture(samples: Sequence[Sequence[Panel]], title: str, key: str) -> bytes:
    """A PNG: the panels of a sample side by side, eight samples below each other, further ones to the right.

    `key` says below the title how to read it.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = min(_MAX_LINES, len(samples))
    blocks, width = math.ceil(len(samples) / lines), len(samples[0])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False  # a $ in a name starts no formula
        inches = _PANEL_INCHES * (width * blocks + 0.3 * (blocks - 1))
        words = [*wrapped(title, 70 * inches, _SIZE), *wrapped(key, 70 * inches, _SIZE)]
        head = 0.14 * len(words) + 0.3
        figure = Figure(figsize=(inches, _PANEL_INCHES * 1.22 * lines + head))
        FigureCanvasAgg(figure)
        top = 1 - head / figure.get_figheight()
        columns = [1.0] * (width * blocks + blocks - 1)
        for gap in range(width, len(columns), width + 1):
            columns[gap] = 0.3
        grid = figure.add_gridspec(
            lines,
            len(columns),
            width_ratios=columns,
            left=0.01,
            right=0.99,
            bottom=0.01,
            top=top,
            hspace=0.3,
            wspace=0.05,
        )
        figure.suptitle("\n".join(words), fontsize=_SIZE, y=1 - 0.05 / figure.get_figheight())
        for place, panels in enumerate(samples):
            line, first = place % lines, place // lines * (width + 1)
            for column, panel in enumerate(panels):
                axes = figure.add_subplot(grid[line, first + column])
                image = np.clip(panel.image.transpose(1, 2, 0), 0, 1)
                axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
                axes.set_axis_off()
                caption = fit(panel.caption, 68 * _PANEL_INCHES, _SIZE)
                axes.set_title(caption, fontsize=_SIZE, pad=2, color="#b00020" if panel.alarming else "black")
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    return stream.getvalue()
