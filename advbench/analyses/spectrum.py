"""Train at a spectrum of eps, attack at a spectrum of delta: overdesign, Sridhar et al. 2022, arXiv:2206.06496.

The matrix of accuracies of runs trained by `advbench train --eps LIST`. In deep nets the best training eps for a delta
lies above delta (overdesign), at a cost in clean accuracy, which is listed too. Linear nets should show no such gain.
If the best row is the largest training eps, it is flagged: the optimum may lie beyond. Runs that differ only in the
seed are averaged. The paper attacks with PGD-20 (`attack=pgd steps=20`); the default here is AutoAttack.

With `corruptions` the accuracy under common corruptions stands beside it, the mean over corruptions and severities. In
the paper (CIFAR-10-C) it is best at small training eps, 1/255 and 2/255, and falls beyond.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import Tensor

from advbench.analyses.base import Analysis, Progress
from advbench.analyses.trained_run import TrainedRun, batches, images, load_runs, named_attack, right, withstands
from advbench.data.corruptions import COMMON, SEVERITIES, corrupted, source_of
from advbench.data.dataset import Dataset
from advbench.data.simple_corruptions import SIMPLE, check_simple, corrupted_simply
from advbench.eps import Eps, parse_eps_list
from advbench.errors import UserError
from advbench.figure import ROW, Line, draw_curves, draw_dots, legend, legend_lines, panels
from advbench.recipe import differences
from advbench.recipe.fields import Count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENTRIES: dict[str, dict[str, Any]] = {
    "spectrum": {
        "make": "run",
        "summary": "training eps x attacked eps: the best for each, its clean cost, overdesign (Sridhar et al. 2022)",
        "paper": "Towards Alternative Techniques for Improving Adversarial Robustness",
        "arxiv": "2206.06496",
        "year": 2022,
        "claim": "CIFAR-10, ResNet-18, delta 8/255: trained at 12/255 52.6 %, at 8/255 48.8 % under PGD-20",
        "cost": None,
        "cautions": ["the gain costs clean accuracy: 83.6 falls to 76.5 %"],
        "runs": "of one recipe but for eps and seed: advbench train --eps LIST",
    },
}


def run(
    runs: list[Path],
    *,
    n: Count = 500,
    eps: str | None = None,
    attack: str = "autoattack",
    steps: Count | None = None,
    corruptions: Literal["off", "simple", "common"] = "off",
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    progress: Progress | None = None,
) -> Analysis:
    """Tables `matrix` (training eps x attacked eps, with clean), `best` (by attacked eps) and `corruptions`, if asked.

    - `n`: how many test images.
    - `eps`: the attacked eps, a comma list, by default the training eps of the runs.
    - `attack`: which attack, or set of attacks.
    - `steps`: those of the attack, where it has them.
    - `corruptions`: "simple" also measures the accuracy under the 8 common corruptions that are made here, with the
      constants of CIFAR-10-C; "common" under all 15, as `evaluate --attack corruptions` does.
    - `seed`: of all random numbers.

    Raises UserError for runs that `load_runs` or `check_same` refuse, an unknown attack, no eps above 0, corruptions of
    images that have neither 1 nor 3 channels, and for `corruptions=common` where the published files and the package
    are missing.
    """
    trained = load_runs(runs, device, at_least=2)
    check_same(trained)
    norm = trained[0].recipe.threat.norm
    trained_eps = {one.trained_eps.value: one.trained_eps for one in trained}
    deltas = parse_eps_list(eps, norm) if eps else [trained_eps[value] for value in sorted(trained_eps)]
    deltas = [delta for delta in deltas if delta.value > 0]
    if not deltas:
        raise UserError("there is no eps above 0 to attack at: name some with --eps")
    attacks, data = named_attack(attack, norm, steps), images(trained, "test", n, device)
    source = source_of(data) if corruptions == "common" else ""
    if corruptions == "simple":
        check_simple(data)
    rows: list[dict[str, Any]] = []
    for done, one in enumerate(trained):
        stands = torch.ones(len(data), dtype=torch.bool)
        for place, delta in enumerate([Eps("0", 0.0), *deltas]):
            if progress is not None:
                progress(f"{one.name} at {delta}", done + place / (len(deltas) + 1), len(trained))
            # An image that fell at a smaller delta counts as fallen at larger ones.
            rows_left = stands.nonzero()[:, 0]
            if len(rows_left):
                left = data.subset(rows_left.to(device))
                stands[rows_left] = withstands(one.net, left, attacks, norm=norm, eps=delta.value, seed=seed)
            share = float(stands.double().mean())
            rows.append({"eps": one.trained_eps.value, "delta": delta.value, "accuracy": share})
    every = pd.DataFrame(rows)
    matrix = every.pivot_table(index="eps", columns="delta", values="accuracy", aggfunc="mean")
    best = best_rows(matrix)
    text = {eps.value: eps.text for eps in [*trained_eps.values(), *deltas]} | {0.0: "clean"}
    named = matrix.rename(index=lambda value: trained_eps[value].text, columns=lambda value: text[value])
    named.index.name, named.columns.name = "trained eps", None
    shown = best.assign(
        **{name: [text[value] for value in best[name]] for name in ("delta", "best_eps", "nearest_eps")}
    )
    what = trained[0].recipe.method.name
    tables = {"matrix": named, "best": shown.set_index("delta")}
    figures = {"spectrum": _figure(matrix, text, trained_eps, f"{what}, {attack}")}
    notes = _notes(shown)
    if corruptions != "off":
        table = under_corruptions(trained, data, source, seed=seed)
        tables["corruptions"] = table
        figures["corruptions"] = _figure_of_corruptions(table, what)
        best_eps, images_of = str(table["mean"].idxmax()), f"images of {source}" if source else "CIFAR-10-C's constants"
        notes += (
            f"corruptions: best trained at {best_eps} ({table['mean'][best_eps]:.1%}, the mean over "
            f"{table.shape[1] - 2} corruptions at {len(SEVERITIES)} severities; {images_of})",
        )
    return Analysis(
        title=f"Accuracy by the eps trained (row) and attacked (column) at: {norm}, {attack}, n = {len(data)}",
        tables=tables,
        figures=figures,
        notes=notes,
        shares=frozenset({"matrix", "corruptions", "accuracy", "clean", "gain", "clean_cost"}),
    )


def best_rows(matrix: pd.DataFrame) -> pd.DataFrame:
    """A table with a row for each attacked delta, from accuracies `matrix` (training eps x delta, 0 being clean).

    Columns: the eps of the best row, its accuracy and clean accuracy, the eps of the row nearest to delta, the gain
    over that, the clean accuracy that this costs, whether the best eps exceeds delta and is not the nearest one, and
    whether it is the largest of the grid.
    """
    found, columns = [], {float(str(delta)): column.to_dict() for delta, column in matrix.items()}
    clean, grid = columns.pop(0.0), [float(str(eps)) for eps in matrix.index]
    for delta, column in columns.items():
        best = max(grid, key=column.__getitem__)
        matching = min(grid, key=lambda eps, delta=delta: (abs(eps - delta), eps))  # type: ignore[misc]
        found.append(
            {
                "delta": delta,
                "best_eps": best,
                "accuracy": column[best],
                "clean": clean[best],
                "nearest_eps": matching,
                "gain": column[best] - column[matching],
                "clean_cost": clean[matching] - clean[best],
                "overdesign": best > delta * (1 + 1e-9) and best != matching,
                "at_the_edge": best == max(grid),
            }
        )
    return pd.DataFrame(found)


def check_same(trained: list[TrainedRun]) -> None:
    """Raise UserError unless the recipes differ in eps and seed only. Runs without attacks (eps 0) are not compared."""
    attacked = [one for one in trained if one.trained_eps.value > 0]
    for one in attacked[1:]:
        changed = differences(attacked[0].recipe, one.recipe)
        other = [change for change in changed if change.split()[0] not in ("threat.eps", "threat.eps_value", "seed")]
        if other:
            raise UserError(
                f"{one.folder} differs from {attacked[0].folder} in more than eps and seed: {'; '.join(other)}"
            )


def under_corruptions(trained: list[TrainedRun], data: Dataset, source: str, *, seed: int) -> pd.DataFrame:
    """Accuracies by training eps: clean, the mean over the corruptions, and each corruption (mean over severities).

    `source`: as in `data.corruptions.corrupted`; if empty, the corruptions are the simple ones.
    """
    names = COMMON if source else SIMPLE
    rows: list[dict[str, Any]] = []

    def measure(name: str, points: Tensor) -> None:
        for one in trained:
            share = float(right(one.net, points, data.labels).double().mean())
            rows.append({"eps": one.trained_eps.value, "name": name, "accuracy": share})

    measure("clean", torch.cat([x for x, _ in batches(data)]))
    for name, severity in product(names, SEVERITIES):
        if source:
            measure(name, corrupted(data, name, severity, source=source, seed=seed))
        else:
            measure(name, corrupted_simply(data, name, severity, seed=seed))
    table = pd.DataFrame(rows).pivot_table(index="eps", columns="name", values="accuracy", aggfunc="mean")
    table["mean"] = table[list(names)].mean(axis=1)
    text = {one.trained_eps.value: one.trained_eps.text for one in trained}
    table = table[["clean", "mean", *names]].rename(index=lambda value: text[value])
    table.index.name, table.columns.name = "trained eps", None
    return table


def _figure(matrix: pd.DataFrame, text: dict[float, str], trained_eps: dict[float, Eps], title: str) -> Figure:
    deltas = [float(value) for value in matrix.columns]
    lines = []
    for place, (value, row) in enumerate(matrix.iterrows()):
        accuracy = [float(share) for share in row]
        label = f"trained at {trained_eps[float(str(value))].text}"
        lines.append(Line(label, deltas, accuracy, accuracy, accuracy, place))
    ticks = [(value, text[value].replace("clean", "0")) for value in deltas]
    below = legend_lines(len(lines))
    with panels(1, f"Trained at a spectrum of eps: {title}", below=below) as (figure, (axes,)):
        legend(figure, draw_curves(axes, lines, "attacked eps", ticks), [line.label for line in lines])
    return figure  # type: ignore[no-any-return]


def _figure_of_corruptions(table: pd.DataFrame, method: str) -> Any:
    """A row for each training eps."""
    shown = {"clean": "clean", "mean": "mean over the corruptions"}
    title = f"{method}: accuracy under common corruptions, by the training eps"
    with panels(1, title, height=1 + ROW * len(table), below=legend_lines(len(shown))) as (figure, (axes,)):
        series = {name: list(100 * table[column]) for column, name in shown.items()}
        legend(figure, draw_dots(axes, list(table.index), series, "accuracy (%)"), list(series))
    return figure


def _notes(best: pd.DataFrame) -> tuple[str, ...]:
    notes = []
    for row in best.to_dict("records"):
        edge = "; this is the largest training eps: the optimum may lie beyond" if row["at_the_edge"] else ""
        over = "at the same eps" if row["nearest_eps"] == row["delta"] else f"at {row['nearest_eps']}, the nearest"
        notes.append(
            f"attacked at {row['delta']}: best trained at {row['best_eps']} ({row['accuracy']:.1%}), "
            f"{100 * row['gain']:+.1f} points over training {over}, "
            f"for {100 * row['clean_cost']:.1f} points of clean accuracy{edge}"
        )
    return tuple(notes)
