"""Do attacks made on one run fool another? Papernot et al. 2016, arXiv:1605.07277.

Row: the run that is attacked, by PGD on its cross-entropy. Column: the run that is shown the points. The diagonal is
the white-box attack itself. A net whose gradients are masked is felled by others' points more than by its own
(Carlini et al. 2019, arXiv:1902.06705, section 5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from advbench.analyses.base import Analysis, Progress
from advbench.analyses.trained_run import against, images, load_runs, one_eps, perturbed, right

ENTRIES: dict[str, dict[str, Any]] = {
    "transfer": {
        "make": "run",
        "summary": "attacks made on each run, shown to each other (Papernot et al. 2016)",
        "paper": "Transferability in Machine Learning: from Phenomena to Black-Box Attacks",
        "arxiv": "1605.07277",
        "year": 2016,
        "claim": "a run felled more by others' points than by its own has masked gradients",
        "cost": None,
        "cautions": ["PGD on the cross-entropy; a robust source transfers better than a standard one"],
        "runs": "two or more of one dataset and norm",
    },
}


DOUBT = 0.02  # a share that chance and an unlucky PGD explain


def run(
    runs: list[Path],
    *,
    n: int = 500,
    eps: str | None = None,
    steps: int = 20,
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    progress: Progress | None = None,
) -> Analysis:
    """Table `accuracy`, source x target, with the clean accuracy. `eps`: by default the first run's.

    Raises UserError.
    """
    subjects = load_runs(runs, device, at_least=2)
    names = [subject.name for subject in subjects]
    data = images(subjects, "test", n, device)
    size, norm = one_eps(eps, subjects[0]), subjects[0].recipe.threat.norm
    x, y = data.batch(slice(None))
    stands = {name: right(subject.net, x, y) for name, subject in zip(names, subjects, strict=True)}
    rows = {"clean": {name: float(ok.double().mean()) for name, ok in stands.items()}}
    for done, (source, attacked) in enumerate(zip(names, subjects, strict=True)):
        if progress is not None:
            progress(source, done, len(subjects))
        points = perturbed(against(attacked.net), data, norm=norm, eps=size.value, steps=steps, seed=seed)
        rows[source] = {
            target: float((stands[target] & right(subject.net, points, y)).double().mean())
            for target, subject in zip(names, subjects, strict=True)
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("source")
    return Analysis(
        title=f"Accuracy of each run (column) on points made against each (row): {norm} {size}, n = {len(data)}",
        tables={"accuracy": table},
        notes=tuple(_notes(table)),
    )


def _notes(table: pd.DataFrame) -> list[str]:
    found = []
    for target in map(str, table.columns):
        column = table[target].to_dict()
        own = column[target]
        source = min((name for name in column if name not in ("clean", target)), key=column.__getitem__)
        if own - column[source] > DOUBT:
            found.append(
                f"{target}: points made against {source!s} fell more ({column[source]:.1%} left) than its own "
                f"({own:.1%}): its gradients may be masked"
            )
    return found
