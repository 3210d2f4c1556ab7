"""The optimiser chooses the norm: Faghri et al. 2021, arXiv:2102.08868. The authors' code was read.

On separable data the largest perturbation that a linear classifier withstands is min_i y_i w.x_i / ||w||_dual. So the
most robust classifier has the least dual norm, and the optimiser decides which norm is minimised:

gradient descent, on a linear model or a 2-layer fully connected linear net: l2; greedy coordinate descent: l1 (robust
to Linf); sign gradient descent, scaled by ||g||_1: Linf (robust to L1); gradient descent on a 2-layer circular
convolutional linear net: ||F w||_1 (robust to Fourier-Linf); FISTA with a vanishing penalty ||w||: that norm (robust to
its dual); adversarial training in a norm at 0.99 of the largest margin, which must be known: its dual norm (robust to
the norm itself).

Each row of the table is an optimiser, each column a norm of perturbations. The entries are the margin reached as a
share of the largest possible one, averaged over n in {3, 12, 25} points x ~ N(0, I_100), y = +-1, and over the trials.

This is the linear half of the paper, with the 2-layer convolutional net for its part on architectures: each net by
plain gradient descent, what it is robust to depends on the layers alone. On images the same nets are `train --arch
linear`, `conv_linear`, or `mlp` with `model.activation=identity`, and the paper's Fourier attack on deep nets is
`evaluate --norm fourier-linf --attack apgd-ce` (or apgd-t), in a band of frequencies by `--set band=LOW,HIGH`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from advbench.analyses.base import Analysis, Progress
from advbench.analyses.linear_optimizers import STAGES, adversarial, convolutional, fista, fully_connected, steepest
from advbench.analyses.minimum_norm import Array, largest_margin, margin
from advbench.errors import UserError
from advbench.figure import ROW, draw_grid, panels
from advbench.recipe.fields import Count

ENTRIES: dict[str, dict[str, Any]] = {
    "implicit-bias": {
        "make": "run",
        "summary": "the norm in which each optimiser is robust, without adversarial training (Faghri et al. 2021)",
        "paper": "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
        "arxiv": "2102.08868",
        "year": 2021,
        "claim": "each optimiser finds the maximally robust linear classifier of its own norm",
        "cost": None,
        "cautions": [
            "the linear half of the paper and the 2-layer convolution alone: nothing follows for deep networks",
            "the paper's Fourier attack on image nets: evaluate --norm fourier-linf --attack apgd-ce",
        ],
        "runs": "none: the models are trained here",
    },
}

NORMS = ("l2", "linf", "l1", "fourier-linf")
EPS_SHARE = 0.99  # eps of adversarial training, as a share of the largest margin
OWN = {
    "gradient-descent": "l2",
    "coordinate-descent": "linf",
    "sign-gradient-descent": "l1",
    "conv-gradient-descent": "fourier-linf",
    "fc-gradient-descent": "l2",
    **{f"fista-{norm}": norm for norm in NORMS},
    **{f"adversarial-{norm}": norm for norm in NORMS},
}
"""For each optimiser, the norm of the perturbations to which it should be the most robust."""


def run(
    runs: list[Path],
    *,
    sizes: str = "3,12,25",
    dim: Count = 100,
    trials: Count = 3,
    steps: Count = 30_000,
    fista_steps: Count = 2_000,
    adversarial_steps: Count = 5_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """Tables `margins` (mean over the data sets), `worst` (minimum) and `by_size` (minimum by number of points).

    - `sizes`: numbers of points n, a comma list.
    - `dim`: of the points.
    - `trials`: data sets of each size.
    - `steps`: of the descents.
    - `fista_steps`: of FISTA, at least 20.
    - `adversarial_steps`: of adversarial training.
    - `seed`: of all random numbers.

    Takes about a minute on one core. Raises UserError if `runs` are named (none are needed) and for sizes above `dim`,
    where the points may not be separable.
    """
    if runs:
        raise UserError("implicit-bias trains its own linear models: do not name a run")
    counts = _counts(sizes, dim)
    if min(trials, steps, adversarial_steps) < 1:
        raise UserError("trials, steps and adversarial_steps must be at least 1")
    if fista_steps < STAGES:
        raise UserError(f"fista_steps must be at least {STAGES}, one for each lambda")
    rows: list[dict[str, Any]] = []
    suites = [(n, trial) for n in counts for trial in range(trials)]
    for done, (n, trial) in enumerate(suites):
        rng = np.random.default_rng([seed, n, trial])
        z = rng.standard_normal((n, dim)) * rng.choice([-1.0, 1.0], (n, 1))
        best = {norm: largest_margin(z, norm) for norm in NORMS}
        attacked = {
            f"adversarial-{norm}": partial(adversarial, z, norm, EPS_SHARE * best[norm], adversarial_steps)
            for norm in NORMS
        }
        for place, (name, train) in enumerate((_optimisers(z, steps, fista_steps, rng) | attacked).items()):
            if progress is not None:
                progress(name, done + place / len(OWN), len(suites))
            w = train()
            rows += [
                {"optimiser": name, "n": n, "trial": trial, "norm": norm, "share": margin(z, w, norm) / best[norm]}
                for norm in NORMS
            ]
    every = pd.DataFrame(rows)
    margins = _pivot(every, "mean")
    return Analysis(
        title="Margin reached, as a share of the largest possible margin",
        tables={
            "margins": margins,
            "worst": _pivot(every, "min"),
            "by_size": _pivot(every, "min", ["optimiser", "n"]),
        },
        figures={"margins": _figure(margins)},
        notes=verdicts(every),
        shares=frozenset({"margins", "worst", "by_size"}),
    )


def _figure(margins: pd.DataFrame) -> Any:
    """The table in percent; a frame is around each optimiser's own norm."""
    optimisers = list(map(str, margins.index))
    title = "Margin reached, in % of the largest possible margin (mean)"
    with panels(1, title, height=1 + ROW * len(optimisers)) as (figure, (axes,)):
        draw_grid(
            axes, optimisers, NORMS, (100 * margins).to_numpy().tolist(), text="{:.1f}".format, top=100,
            xlabel="norm of the perturbation (framed: that of the optimiser)",
            framed={row: NORMS.index(OWN[name]) for row, name in enumerate(optimisers)},
        )  # fmt: skip
    return figure


def verdicts(every: pd.DataFrame) -> tuple[str, ...]:
    """A sentence for each optimiser: its worst share of the largest margin in its own norm, and how often it won there.

    An optimiser wins on a data set if its margin exceeds those of all optimisers of other norms.
    """
    notes = []
    for name, norm in OWN.items():
        column = every[every.norm == norm].pivot_table(index=["n", "trial"], columns="optimiser", values="share")
        rivals = column[[other for other in column.columns if OWN[other] != norm]].max(axis=1)
        won = int((column[name] > rivals).sum())
        notes.append(
            f"{name}: at least {column[name].min():.4f} of the optimum for {norm}, "
            f"best of all optimisers of other norms in {won} of {len(column)} suites"
        )
    return tuple(notes)


def _optimisers(z: Array, steps: int, fista_steps: int, rng: np.random.Generator) -> dict[str, Callable[[], Array]]:
    plain = {name: (lambda name=name: steepest(z, name, steps)) for name in list(OWN)[:3]}  # type: ignore[misc]
    proximal = {f"fista-{norm}": (lambda norm=norm: fista(z, norm, fista_steps)) for norm in NORMS}  # type: ignore[misc]
    nets = {
        "conv-gradient-descent": lambda: convolutional(z, steps, rng),
        "fc-gradient-descent": lambda: fully_connected(z, steps, rng),
    }
    return {**plain, **nets, **proximal}


def _pivot(every: pd.DataFrame, how: Literal["mean", "min"], index: Sequence[str] = ("optimiser",)) -> pd.DataFrame:
    table = every.pivot_table(index=list(index), columns="norm", values="share", aggfunc=how, sort=False)[list(NORMS)]
    table.columns.name = None
    return table


def _counts(sizes: str | int, dim: int) -> list[int]:
    """The numbers of points in `sizes`. Raises UserError."""
    try:
        counts = [int(size) for size in str(sizes).split(",")]
    except ValueError as error:
        raise UserError(f"sizes {sizes!r} is not a comma list of whole numbers") from error
    if not counts or min(counts) < 1 or max(counts) > dim:
        raise UserError(f"sizes {sizes!r} must lie in 1 to dim, {dim}: more points may not be separable")
    return counts
