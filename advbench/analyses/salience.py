"""Where the gradient and the attention of a run fall: on the strokes, or on the ground around them.

Liu and JaJa (IJCAI 2019, arXiv:1810.02424) say that their attention suppresses the unrelated background, and that the
model is aligned with what is salient in the data. A reconstruction from the abstract: the measure is our choice. The
salient pixels S of a grey image on black are those brighter than `ink`. For each image, and then averaged:

ink              |S| / pixels: what equal weights would give
gradient         sum over S of |dCE/dx| / sum over all pixels, at the clean image
attention        sum_i a_i s_i, with a_i of `models/attention.py` and s_i the share of S in the cell of position i
attention_most   max_i s_i: what attention on the one best position would give

Positions are taken to divide the image into equal cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from advbench.analyses.base import Analysis, Progress
from advbench.analyses.trained_run import batches, directions, images, load_runs
from advbench.errors import UserError
from advbench.figure import ROW, draw_dots, legend, legend_lines, panels
from advbench.models.attention import Attention
from advbench.recipe.fields import Count, Share

ENTRIES: dict[str, dict[str, Any]] = {
    "salience": {
        "make": "run",
        "summary": "the share of the gradient and of the attention on the strokes of a grey image (Liu and JaJa 2019)",
        "paper": "Feature Prioritization and Regularization Improve Standard Accuracy and Adversarial Robustness",
        "arxiv": "1810.02424",
        "year": 2019,
        "claim": "attention and gradients fall on what is salient, more than those of adversarial training",
        "cost": None,
        "cautions": [
            "a reconstruction from the abstract: bright pixels stand for the salient ones",
            "the gap between two strokes can tell two digits apart, and counts as ground",
        ],
        "runs": "one or more on digits, mnist or fashion-mnist; only those with attention have its columns",
    },
}


def run(
    runs: list[Path],
    *,
    n: Count = 500,
    ink: Share = 0.1,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    progress: Progress | None = None,
) -> Analysis:
    """Table `salience`, one row for each run.

    - `n`: how many test images.
    - `ink`: pixels above it are salient, on the scale of 0 to 1.

    Images whose gradient is 0 in float32 are left out of its mean, with a note. Raises UserError for runs that
    `load_runs` refuses, and for images in colour.
    """
    trained = load_runs(runs, device)
    data = images(trained, "test", n, device)
    if data.shape[0] != 1:
        raise UserError(
            f"{data.name} has images in colour, on which bright pixels are not the salient ones: "
            "name runs on digits, mnist or fashion-mnist"
        )
    salient = torch.cat([x[:, 0] > ink for x, _ in batches(data)])
    rows: dict[str, dict[str, float]] = {}
    notes = []
    for done, one in enumerate(trained):
        if progress is not None:
            progress(one.name, done, len(trained))
        found = gradient_share(directions(one.net, data)[0], salient)
        left_out = int(found.isnan().sum())
        if left_out:
            notes.append(
                f"{one.name}: {left_out} of {len(data)} images have the gradient 0 and are left out of its mean"
            )
        row = {"ink": float(salient.double().mean()), "gradient": float(found.nanmean())}
        attention = next((part for part in one.net.modules() if isinstance(part, Attention)), None)
        if attention is not None:
            with torch.no_grad():
                weights = torch.cat([attention.weights(*attention.net.maps_and_features(x)) for x, _ in batches(data)])
            share, most = attention_share(weights, salient)
            row |= {"attention": float(share.mean()), "attention_most": float(most.mean())}
        rows[one.name] = row
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
    title = f"Share of the gradient and of the attention on pixels above {ink:g}: n = {len(data)}"
    shares = frozenset(map(str, table))
    return Analysis(title, {"salience": table}, {"salience": _figure(table, title)}, tuple(notes), shares)


def gradient_share(g: Tensor, salient: Tensor) -> Tensor:
    """The share (n,) of |g| (n, D) on the pixels `salient` (n, H, W), D = H W; nan where g is 0."""
    size = g.abs().double()
    return (size * salient.flatten(1)).sum(1) / size.sum(1)


def attention_share(weights: Tensor, salient: Tensor) -> tuple[Tensor, Tensor]:
    """The share (n,) of attention (n, 1, h, w) on the pixels `salient` (n, H, W), and the largest that it can be."""
    down, across = (_cells(cells, pixels) for cells, pixels in zip(weights.shape[2:], salient.shape[1:], strict=True))
    cells = torch.einsum("ir,nrc,jc->nij", down, salient.double().cpu(), across)[:, None].to(weights.device)
    return (weights * cells).sum((1, 2, 3)), cells.amax((1, 2, 3))


def _cells(count: int, pixels: int) -> Tensor:
    """The share (count, pixels) of each of `count` equal cells that lies on each pixel of a row."""
    cell, pixel = torch.arange(count)[:, None] * (pixels / count), torch.arange(pixels, dtype=torch.float64)
    overlap = torch.minimum(cell + pixels / count, pixel + 1) - torch.maximum(cell, pixel)
    return overlap.clamp(min=0) * count / pixels


def _figure(table: pd.DataFrame, title: str) -> Any:
    """A row for each run, a point for each share."""
    series = {str(name): list(100 * table[name]) for name in table}
    with panels(1, title, height=1 + ROW * len(table), below=legend_lines(len(series))) as (figure, axes):
        legend(figure, draw_dots(axes[0], list(table.index), series, "share (%)"), list(series))
    return figure
