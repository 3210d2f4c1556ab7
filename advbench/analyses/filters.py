"""Which layers amplify perturbations: Sridhar et al. 2022, arXiv:2206.06496. Read in code.

For each layer with 2-D kernels K (k, k): the maximum and the mean, over all kernels, of max |K|, the l1 norm
sum |K| (how much a perturbation of the input in Linf can grow) and the largest singular value of K. A fully
connected layer counts as one kernel, its weight matrix, whose l1 norm is that of its largest row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from advbench.analyses.base import Analysis
from advbench.analyses.trained_run import load_runs

ENTRIES: dict[str, dict[str, Any]] = {
    "filters": {
        "make": "run",
        "summary": "size of each layer's filters: max |w|, l1 and spectral norm over kernels (Sridhar et al. 2022)",
        "paper": "Towards Alternative Techniques for Improving Adversarial Robustness",
        "arxiv": "2206.06496",
        "year": 2022,
        "claim": "filters of nets trained against larger eps amplify less, the first layer most of all",
        "cost": None,
        "cautions": ["single filters, not layers: BatchNorm rescales what they give"],
        "runs": "one or more",
    },
}


def run(
    runs: list[Path],
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Analysis:
    """Tables `filters` (a row a layer and run) and, for several runs, `l1` (mean l1 norm, layer x run).

    Raises UserError.
    """
    rows: list[dict[str, Any]] = []
    for subject in load_runs(runs, device):
        for name, layer in subject.net.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                found = {"run": subject.name, "eps": subject.trained_eps.text, "layer": name}
                rows.append({**found, "kind": type(layer).__name__, **sizes(layer.weight)})
    table = pd.DataFrame(rows)
    tables = {"filters": table.set_index(["run", "eps", "layer"])}
    if len(runs) > 1:
        several = table.pivot_table(index="layer", columns="run", values="mean_l1", sort=False)
        several.columns.name = None
        tables["l1"] = several
    return Analysis(title="Filters: maximum and mean over kernels of max |w|, l1 and spectral norm", tables=tables)


def sizes(weight: Tensor) -> dict[str, float]:
    """The six numbers of a weight (out, in, k, k) or (out, in)."""
    with torch.no_grad():
        kernels = (weight if weight.dim() == 2 else weight.flatten(0, 1)).double()
        kernels = kernels[None] if kernels.dim() == 2 else kernels
        largest = kernels.abs().amax((1, 2))
        absolute = kernels.abs().sum(2)
        l1 = absolute.amax(1) if weight.dim() == 2 else absolute.sum(1)
        spectral = torch.linalg.matrix_norm(kernels, 2)
    found = {"max": largest, "l1": l1, "spectral": spectral}
    return {f"{how}_{name}": float(getattr(v, how)()) for name, v in found.items() for how in ("max", "mean")}
