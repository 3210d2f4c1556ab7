"""Which layers amplify perturbations: Sridhar et al. 2022, arXiv:2206.06496. The authors' code was read.

For each layer with 2-D kernels K (k, k): the maximum and the mean, over all kernels, of max |K|, the l1 norm
sum |K| (how much an Linf perturbation of the input can grow) and the largest singular value of K. The authors plot
max |K|, its mean and its maximum, of convolutions alone, layer by layer against eps. A fully connected layer counts as
one kernel here, its weight matrix; its l1 norm is the largest l1 norm of a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from advbench.analyses.base import Analysis
from advbench.analyses.trained_run import load_runs
from advbench.errors import UserError
from advbench.figure import ROW, draw_dots, legend, legend_lines, panels

ENTRIES: dict[str, dict[str, Any]] = {
    "filters": {
        "make": "run",
        "summary": "size of each layer's filters: max |w|, l1 and spectral norm over kernels (Sridhar et al. 2022)",
        "paper": "Towards Alternative Techniques for Improving Adversarial Robustness",
        "arxiv": "2206.06496",
        "year": 2022,
        "claim": "filters of nets trained against larger eps amplify less, the first layer most of all",
        "cost": None,
        "cautions": ["single filters, not layers: BatchNorm rescales their outputs"],
        "runs": "one or more",
    },
}


def run(
    runs: list[Path],
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Analysis:
    """Table `filters`: one row for each run and layer.

    For several runs also `max_w` and `l1`, layer x run: the means over kernels of max |w|, as in the paper, and of the
    l1 norm.

    Raises UserError for runs that `load_runs` refuses.
    """
    rows: list[dict[str, Any]] = []
    for one in load_runs(runs, device):
        for name, layer in one.net.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                found = {"run": one.name, "eps": one.trained_eps.text, "layer": name}
                rows.append({**found, "kind": type(layer).__name__, **sizes(layer.weight)})
    if not rows:
        raise UserError("these runs have no convolution and no fully connected layer, which are what has filters")
    table = pd.DataFrame(rows)
    tables = {"filters": table.set_index(["run", "eps", "layer"])}
    if len(runs) > 1:
        for name, column in {"max_w": "mean_max", "l1": "mean_l1"}.items():
            tables[name] = table.pivot_table(index="layer", columns="run", values=column, sort=False)
            tables[name].columns.name = None
    title = "Filters: maximum and mean over kernels of max |w|, l1 and spectral norm"
    return Analysis(title, tables, {"filters": _figure(table)})


def _figure(table: pd.DataFrame) -> Any:
    """A panel for each mean, a row for each layer, a point for each run."""
    layers, runs = list(dict.fromkeys(table.layer)), list(dict.fromkeys(table.run))
    shown = {"mean_max": "mean of max |w|", "mean_l1": "mean l1 norm", "mean_spectral": "mean spectral norm"}
    title = "Size of the filters of each layer, mean over its kernels"
    with panels(len(shown), title, height=1 + ROW * len(layers), below=legend_lines(len(runs))) as (figure, axes):
        for place, (column, label) in enumerate(shown.items()):
            found = table.pivot_table(index="layer", columns="run", values=column, sort=False).reindex(layers)
            drawn = draw_dots(axes[place], [] if place else layers, {run: list(found[run]) for run in runs}, label)
            axes[place].set_xlim(left=0)
            if not place:
                legend(figure, drawn, runs)
    return figure


def sizes(weight: Tensor) -> dict[str, float]:
    """The six numbers above for a weight (out, in, k, k) or (out, in): max_ and mean_ of max, l1 and spectral."""
    with torch.no_grad():
        kernels = (weight if weight.dim() == 2 else weight.flatten(0, 1)).double()
        kernels = kernels[None] if kernels.dim() == 2 else kernels
        largest = kernels.abs().amax((1, 2))
        absolute = kernels.abs().sum(2)
        l1 = absolute.amax(1) if weight.dim() == 2 else absolute.sum(1)
        spectral = torch.linalg.matrix_norm(kernels, 2)
    found = {"max": largest, "l1": l1, "spectral": spectral}
    return {f"{how}_{name}": float(getattr(v, how)()) for name, v in found.items() for how in ("max", "mean")}
