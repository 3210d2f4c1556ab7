"""The outputs of a layer quantised at test time, without retraining: Sridhar et al. 2022, arXiv:2206.06496.

The authors' code was read. q(h) = floor(levels h) / levels. Its gradient is zero wherever it exists, so a gain under
plain gradient attacks may be gradient masking. The quantised net is attacked in three ways: by the plain attack; by the
same with straight-through gradients (BPDA, Athalye et al. 2018, arXiv:1802.00420); by points made against the net
without quantisation (transfer). `worst` counts an image only if it withstands all three. The baseline is the net
without quantisation under the plain attack. The authors quantise one layer or stage after the other; `layer` names
which.
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
from advbench.errors import UserError, unknown
from advbench.figure import ROW, draw_dots, legend, legend_lines, panels
from advbench.models import wrap
from advbench.models.base import Model, layers_of, straight_through
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

PGD_STEPS = 20


def run(
    runs: list[Path],
    *,
    layer: str = "first",
    levels: Count = 8,
    n: Count = 500,
    eps: str | None = None,
    attack: str = "pgd",
    steps: Count | None = None,
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    progress: Progress | None = None,
) -> Analysis:
    """Table `accuracy`, one row for each run and layer; one layer is quantised at a time.

    - `layer`: which layers, a comma list of names in `net.named_modules()`; or `first`, the first with weights; or
      `all`, every convolution and fully connected layer but the one that the net registers last.
    - `levels`: of its outputs: q(h) = floor(levels h) / levels.
    - `n`: how many test images.
    - `eps`: of the attack, by default each run's own.
    - `attack`: which attack.
    - `steps`: of the attack, where it has them, and of the PGD that makes the points of the transfer attack. By default
      20 of PGD, and those that another attack has of its own.
    - `seed`: of all random numbers.

    Raises UserError for runs that `load_runs` refuses, an unknown layer or attack, and an eps that cannot be read.
    """
    trained = load_runs(runs, device)
    data = images(trained, "test", n, device)
    x, y = data.batch(slice(None))
    places = [layers(one.net, layer) for one in trained]
    of_pgd = steps or PGD_STEPS
    rows: list[dict[str, Any]] = []
    for one, names in zip(trained, places, strict=True):
        norm, size = one.recipe.threat.norm, one_eps(eps, one)
        attacks = named_attack(attack, norm, of_pgd if attack == "pgd" else steps)
        threat = {"norm": norm, "eps": size.value, "seed": seed}
        clean, bare = right(one.net, x, y), withstands(one.net, data, attacks, **threat)  # type: ignore[arg-type]
        points = perturbed(against(one.net), data, norm=norm, eps=size.value, steps=of_pgd, seed=seed)
        for name in names:
            if progress is not None:
                progress(f"{one.name}, {name}", len(rows), sum(map(len, places)))
            quantised = wrap(one.net, "quantize", layer=name, levels=levels).to(device).eval()
            plain = withstands(quantised, data, attacks, **threat)  # type: ignore[arg-type]
            with straight_through(quantised):
                through = withstands(quantised, data, attacks, **threat)  # type: ignore[arg-type]
            transfer = (right(quantised, x, y) & right(quantised, points, y)).cpu()
            rows.append(
                {
                    "run": one.name,
                    "layer": name,
                    "eps": size.text,
                    "clean": _share(clean),
                    "clean_quantized": _share(right(quantised, x, y)),
                    "unquantized": _share(bare),
                    "plain": _share(plain),
                    "straight_through": _share(through),
                    "transfer": _share(transfer),
                    "worst": _share(plain & through & transfer),
                }
            )
    table = pd.DataFrame(rows).set_index(["run", "layer"])
    notes = [_note(one.name, table.loc[[one.name]].droplevel("run")) for one in trained]
    budgets = {one.settings().get("steps") for one in attacks}
    by = f"{attack} (steps: {budgets.pop()})" if len(budgets) == 1 and None not in budgets else attack
    title = f"Accuracy with one layer's outputs at multiples of 1/{levels}: {by}, n = {len(data)}"
    figures = {"accuracy": _figure(table, title)}
    return Analysis(title, {"accuracy": table}, figures, tuple(notes), shares=frozenset({"accuracy"}))


def _note(run: str, table: pd.DataFrame) -> str:
    """The largest gain under the plain attack and under the worst of the three, over the layers of a run."""
    gains = {name: table[name] - table["unquantized"] for name in ("plain", "worst")}
    plain, worst = (f"{100 * gain.max():+.1f} points ({gain.idxmax()})" for gain in gains.values())
    return (
        f"{run}: quantisation gains at most {plain} under the plain attack, "
        f"{worst} under the worst of plain, straight-through and transfer"
    )


def _figure(table: pd.DataFrame, title: str) -> Any:
    """A row for each run and layer, a point for each attack."""
    shown = {
        "clean, not quantised": "clean", "clean, quantised": "clean_quantized", "plain attack, not quantised":
        "unquantized", "plain attack, quantised": "plain", "straight-through attack": "straight_through",
        "transfer attack": "transfer", "worst of the three": "worst",
    }  # fmt: skip
    named = [part for part in ("run", "layer") if len(set(table.index.get_level_values(part))) > 1] or ["run"]
    names = [", ".join(map(str, row)) for row in table.index.to_frame()[named].itertuples(index=False)]
    with panels(1, title, height=1 + ROW * len(table), below=legend_lines(len(shown))) as (figure, (axes,)):
        series = {name: list(100 * table[column].astype(float)) for name, column in shown.items()}
        legend(figure, draw_dots(axes, names, series, "accuracy (%)"), list(shown))
        axes.set_xlim(-3, 103)
    return figure


def layers(net: Model, asked: str) -> list[str]:
    """The names of the layers of `net` that `asked` means (see `run`). Raises UserError for an unknown one."""
    kinds = (nn.Conv2d, nn.Linear)
    weighted = [name for name, layer in net.named_modules() if isinstance(layer, kinds)]
    if asked in ("first", "all") and not weighted:
        raise UserError(f"{net.arch} has no convolution and no fully connected layer: name one with --set layer=NAME")
    if asked == "first":
        return weighted[:1]
    if asked == "all":
        return weighted[:-1] or weighted
    known = layers_of(net)
    chosen = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    for name in chosen:
        if name not in known:
            raise unknown("layer", name, ("first", "all", *known))
    return chosen


def _share(stands: torch.Tensor) -> float:
    return float(stands.double().mean())
