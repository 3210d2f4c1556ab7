"""Do attacks made on one run fool another? Papernot et al. 2016, arXiv:1605.07277.

Row: the run that is attacked, with PGD on its cross-entropy. Column: the run that classifies the points. The diagonal
is the white-box attack itself. If a net's gradients are masked, other nets' points fool it more often than its own
(Carlini et al. 2019, arXiv:1902.06705, section 5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from advbench.analyses.base import Analysis, Progress
from advbench.analyses.trained_run import against, images, load_runs, one_eps, perturbed, right
from advbench.figure import ROW, draw_grid, panels
from advbench.recipe.fields import Count

ENTRIES: dict[str, dict[str, Any]] = {
    "transfer": {
        "make": "run",
        "summary": "attacks made on each run, tried on each other run (Papernot et al. 2016)",
        "paper": "Transferability in Machine Learning: from Phenomena to Black-Box Attacks",
        "arxiv": "1605.07277",
        "year": 2016,
        "claim": "a run that other runs' points fool more than its own has masked gradients",
        "cost": None,
        "cautions": ["PGD on the cross-entropy; a robust source transfers better than a standard one"],
        "runs": "two or more of one dataset and norm",
    },
}


MAX_CHANCE_GAP = 0.02  # in accuracy: what chance and a weak PGD can explain


def run(
    runs: list[Path],
    *,
    n: Count = 500,
    eps: str | None = None,
    steps: Count = 20,
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    progress: Progress | None = None,
) -> Analysis:
    """Table `accuracy`, source x target, with the clean accuracy.

    - `n`: how many test images.
    - `eps`: of the attack, by default the first run's.
    - `steps`: of PGD.
    - `seed`: of all random numbers.

    Raises UserError for runs that `load_runs` refuses, fewer than two runs, and an eps that cannot be read.
    """
    trained = load_runs(runs, device, at_least=2)
    names = [one.name for one in trained]
    data = images(trained, "test", n, device)
    size, norm = one_eps(eps, trained[0]), trained[0].recipe.threat.norm
    x, y = data.batch(slice(None))
    stands = {name: right(one.net, x, y) for name, one in zip(names, trained, strict=True)}
    rows = [{name: float(correct.double().mean()) for name, correct in stands.items()}]  # clean, then by source
    for done, (source, attacked) in enumerate(zip(names, trained, strict=True)):
        if progress is not None:
            progress(source, done, len(trained))
        points = perturbed(against(attacked.net), data, norm=norm, eps=size.value, steps=steps, seed=seed)
        rows.append(
            {
                target: float((stands[target] & right(one.net, points, y)).double().mean())
                for target, one in zip(names, trained, strict=True)
            }
        )
    table = pd.DataFrame(rows, index=["clean", *names]).rename_axis("source")
    title = f"Accuracy of each run (column) on points made against each (row): {norm} {size}, n = {len(data)}"
    return Analysis(
        title=title,
        tables={"accuracy": table},
        figures={"accuracy": _figure(table, title)},
        notes=tuple(_notes(table)),
        shares=frozenset({"accuracy"}),
    )


def _figure(table: pd.DataFrame, title: str) -> Any:
    """The table in percent; a frame is around each run's accuracy on points made against itself."""
    targets = list(map(str, table.columns))
    with panels(1, f"{title} (%)", height=1.6 + ROW * len(table)) as (figure, (axes,)):
        draw_grid(
            axes, list(map(str, table.index)), targets, (100 * table).to_numpy().tolist(), text="{:.1f}".format,
            top=100, xlabel="attacked (framed: by its own points)", ylabel="points made against",
            framed={1 + place: place for place in range(len(targets))},
        )  # fmt: skip
    return figure


def _notes(table: pd.DataFrame) -> list[str]:
    found = []
    for target in map(str, table.columns):
        column = table[target].iloc[1:].to_dict()  # without the clean accuracy
        own = column.pop(target)
        source = min(column, key=column.__getitem__)
        if own - column[source] > MAX_CHANCE_GAP:
            found.append(
                f"{target}: points made against {source!s} fool it more ({column[source]:.1%} left) than its own "
                f"({own:.1%}): its gradients may be masked"
            )
    return found
