"""A layer's outputs quantised at test time, without retraining: Sridhar et al. 2022, arXiv:2206.06496.

The authors' code was read. q(h) = floor(levels h) / levels. Its gradient is zero wherever it exists, so a gain under
plain gradient attacks may be gradient masking. The quantised net is attacked in three ways: by the plain attack; by the
same with straight-through gradients (BPDA, Athalye et al. 2018, arXiv:1802.00420); by points made against the net
without quantisation (transfer). `worst` counts an image only if it withstands all three. The baseline is the net
without quantisation under the plain attack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from advbench.analyses.base import Analysis, Progress
from advbench.analyses.trained_run import (
    against,
    images,
    load_runs,
    named_attack,
    one_eps,
    perturbed,
    right,
    withstands,
)
from advbench.figure import ROW, draw_dots, legend, legend_lines, panels
from advbench.models import wrap
from advbench.models.base import Model, straight_through
from advbench.recipe.fields import Count

ENTRIES: dict[str, dict[str, Any]] = {
    "quantize": {
        "make": "run",
        "summary": "a quantised layer under plain, straight-through and transfer attacks (Sridhar et al. 2022)",
        "paper": "Towards Alternative Techniques for Improving Adversarial Robustness",
        "arxiv": "2206.06496",
        "year": 2022,
        "claim": "quantising the first layer gains 2.2 points under PGD-20 (straight-through gradients undo it)",
        "cost": None,
        "cautions": ["the gain under the plain attack alone is gradient masking"],
        "runs": "one or more",
    },
}


def run(
    runs: list[Path],
    *,
    layer: str | None = None,
    levels: Count = 8,
    n: Count = 500,
    eps: str | None = None,
    attack: str = "pgd",
    steps: Count = 20,
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    progress: Progress | None = None,
) -> Analysis:
    """Table `accuracy`, one row for each run.

    - `layer`: which layer, as in `net.named_modules()`; by default the first with weights.
    - `levels`: of its outputs: q(h) = floor(levels h) / levels.
    - `n`: how many test images.
    - `eps`: of the attack, by default each run's own.
    - `attack`: which attack.
    - `steps`: of the attack, where it has them.
    - `seed`: of all random numbers.

    Raises UserError for runs that `load_runs` refuses, an unknown layer or attack, and an eps that cannot be read.
    """
    trained = load_runs(runs, device)
    data = images(trained, "test", n, device)
    x, y = data.batch(slice(None))
    rows: dict[str, dict[str, Any]] = {}
    for done, one in enumerate(trained):
        if progress is not None:
            progress(one.name, done, len(trained))
        norm, size = one.recipe.threat.norm, one_eps(eps, one)
        attacks, where = named_attack(attack, norm, steps), layer or first_layer(one.net)
        quantised = wrap(one.net, "quantize", layer=where, levels=levels).to(device).eval()
        threat = {"norm": norm, "eps": size.value, "seed": seed}
        bare = withstands(one.net, data, attacks, **threat)  # type: ignore[arg-type]
        plain = withstands(quantised, data, attacks, **threat)  # type: ignore[arg-type]
        with straight_through(quantised):
            through = withstands(quantised, data, attacks, **threat)  # type: ignore[arg-type]
        points = perturbed(against(one.net), data, norm=norm, eps=size.value, steps=steps, seed=seed)
        transfer = (right(quantised, x, y) & right(quantised, points, y)).cpu()
        rows[one.name] = {
            "layer": where,
            "eps": size.text,
            "clean": _share(right(one.net, x, y)),
            "clean_quantized": _share(right(quantised, x, y)),
            "unquantized": _share(bare),
            "plain": _share(plain),
            "straight_through": _share(through),
            "transfer": _share(transfer),
            "worst": _share(plain & through & transfer),
        }
    notes = [
        f"{name}: quantisation gains {100 * (row['plain'] - row['unquantized']):+.1f} points under the plain attack, "
        f"{100 * (row['worst'] - row['unquantized']):+.1f} under the worst of plain, straight-through and transfer"
        for name, row in rows.items()
    ]
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
    title = f"Accuracy with one layer's outputs at multiples of 1/{levels}: {attack}, {steps} steps, n = {len(data)}"
    figures = {"accuracy": _figure(table, title)}
    return Analysis(title, {"accuracy": table}, figures, tuple(notes), shares=frozenset({"accuracy"}))


def _figure(table: pd.DataFrame, title: str) -> Any:
    """A row for each run, a point for each attack."""
    shown = {
        "clean, not quantised": "clean", "clean, quantised": "clean_quantized", "plain attack, not quantised":
        "unquantized", "plain attack, quantised": "plain", "straight-through attack": "straight_through",
        "transfer attack": "transfer", "worst of the three": "worst",
    }  # fmt: skip
    with panels(1, title, height=1 + ROW * len(table), below=legend_lines(len(shown))) as (figure, (axes,)):
        series = {name: list(100 * table[column].astype(float)) for name, column in shown.items()}
        legend(figure, draw_dots(axes, list(table.index), series, "accuracy (%)"), list(shown))
        axes.set_xlim(-3, 103)
    return figure


def first_layer(net: Model) -> str:
    """The name of the first convolution or fully connected layer."""
    kinds = (nn.Conv2d, nn.Linear)
    return next(name for name, layer in net.named_modules() if isinstance(layer, kinds))


def _share(stands: torch.Tensor) -> float:
    return float(stands.double().mean())
