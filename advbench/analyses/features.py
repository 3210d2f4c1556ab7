"""The features z of a run under attack (divergence, compactness), the entropy of its outputs, its input gradients.

For clean x and PGD points x' (after Bui et al. 2020, arXiv:2007.05123, and Sinha et al. 2018, arXiv:1806.08028):

divergence       mean ||z(x) - z(x')|| / ||z(x)||;  to_inter: mean ||z(x) - z(x')|| over the inter-class distance
norm             mean ||z(x)||: if it grows without bound, a small divergence means nothing
intra_inter      mean distance to the own class's centre / mean distance between the centres
entropy          of softmax f, at x and x'
gradient_probe   accuracy of a linear classifier that predicts the class from dCE/dx, scaled to a fixed length; trained
                 on training images, scored on test images. The gradients of undefended nets reveal the class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from advbench.analyses.base import Analysis, Progress
from advbench.analyses.trained_run import BATCH, against, directions, images, load_runs, one_eps, perturbed, right
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.figure import ROW, draw_dots, legend, legend_lines, panels
from advbench.models.base import Model
from advbench.recipe.fields import Count

ENTRIES: dict[str, dict[str, Any]] = {
    "features": {
        "make": "run",
        "summary": "features under attack: divergence, norm, intra/inter-class ratio, entropy, class from gradient",
        "paper": "Improving Adversarial Robustness by Enforcing Local and Global Compactness",
        "arxiv": "2007.05123",
        "year": 2020,
        "claim": "robust nets have small divergence and compact classes",
        "cost": None,
        "cautions": ["a divergence means nothing if the norm of the features has grown without bound"],
        "runs": "one or more",
    },
}


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
    """Table `features`, one row for each run.

    - `n`: how many test images.
    - `eps`: of the attack, by default each run's own.
    - `steps`: of PGD.
    - `seed`: of all random numbers.

    Raises UserError for runs that `load_runs` refuses, an eps that cannot be read, and images of one class.
    """
    trained = load_runs(runs, device)
    data, train = images(trained, "test", n, device), images(trained, "train", 2 * n, device)
    if len(data.labels.unique()) < 2:
        raise UserError(f"all {len(data)} images of {data.name} are of one class: features needs two, so take more (n)")
    rows = {}
    for done, one in enumerate(trained):
        if progress is not None:
            progress(one.name, done, len(trained))
        net, size = one.net, one_eps(eps, one)
        norm = one.recipe.threat.norm
        points = perturbed(against(net), data, norm=norm, eps=size.value, steps=steps, seed=seed)
        x, y = data.batch(slice(None))
        with torch.no_grad():
            z, z_adv = features(net, x), features(net, points)
            clean_entropy, adv_entropy = entropy(logits(net, x)), entropy(logits(net, points))
        intra, inter = distances(z, y)
        distance = (z - z_adv).norm(dim=1)
        rows[one.name] = {
            "eps": size.text,
            "clean": float(right(net, x, y).double().mean()),
            "attacked": float((right(net, x, y) & right(net, points, y)).double().mean()),
            "divergence": float((distance / z.norm(dim=1).clamp_min(1e-12)).mean()),
            "to_inter": float(distance.mean() / inter.clamp_min(1e-12)),
            "norm": float(z.norm(dim=1).mean()),
            "intra_inter": float(intra / inter.clamp_min(1e-12)),
            "entropy": float(clean_entropy.mean()),
            "entropy_attacked": float(adv_entropy.mean()),
            "gradient_probe": probe(net, train, data),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
    title = f"Features and gradients: PGD-{steps}, n = {len(data)}"
    shares = frozenset({"clean", "attacked", "gradient_probe"})
    return Analysis(title, {"features": table}, {"features": _figure(table, title)}, shares=shares)


def features(net: Model, x: Tensor) -> Tensor:
    """The features (n, D) of images x (n, C, H, W)."""
    return torch.cat([net.features(part) for part in x.split(BATCH)])


def logits(net: Model, x: Tensor) -> Tensor:
    """The logits (n, K) of images x (n, C, H, W)."""
    return torch.cat([net(part) for part in x.split(BATCH)])


def entropy(logits: Tensor) -> Tensor:
    """The entropy (n,) in nats of the softmax of `logits` (n, K)."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def distances(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance of features z (n, D) to the centre of their class y (n,), and mean distance between centres."""
    classes = y.unique()
    centres = torch.stack([z[y == label].mean(0) for label in classes])
    intra = (z - centres[torch.searchsorted(classes, y)]).norm(dim=1).mean()
    between = torch.cdist(centres, centres)
    count = max(len(classes) * (len(classes) - 1), 1)
    return intra, between.sum() / count


def _figure(table: pd.DataFrame, title: str) -> Any:
    """A panel for each number, a row for each run."""
    shown = {
        "accuracy (%)": {"clean": 100 * table.clean, "attacked": 100 * table.attacked},
        "divergence": {"": table.divergence},
        "intra / inter": {"": table.intra_inter},
        "entropy (nats)": {"clean": table.entropy, "attacked": table.entropy_attacked},
        "gradient probe (%)": {"": 100 * table.gradient_probe},
    }
    with panels(len(shown), title, height=1 + ROW * len(table), below=legend_lines(2)) as (figure, axes):
        for place, (label, series) in enumerate(shown.items()):
            rows = [] if place else list(table.index)
            drawn = draw_dots(axes[place], rows, {name: list(values) for name, values in series.items()}, label)
            if not place:
                legend(figure, drawn, list(series))
    return figure


def probe(net: Model, train: Dataset, test: Dataset, steps: int = 200) -> float:
    """Accuracy on `test` of a multinomial regression, fitted on `train`, of the class on the direction of dCE/dx."""
    g, y = directions(net, train)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        classifier = nn.Linear(g.shape[1], train.num_classes).to(g.device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.05, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(g), y).backward()
        optimizer.step()
    g, y = directions(net, test)
    with torch.no_grad():
        return float((classifier(g).argmax(1) == y).double().mean())
