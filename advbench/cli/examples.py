"""Adversarial examples as files: arrays, a table and a picture. Loads torch."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advbench import rng
from advbench.cli.picture import Panel, picture
from advbench.data.dataset import Dataset
from advbench.engine.kernels import exact_kernels
from advbench.escape import csv_text
from advbench.evaluator import Evaluation
from advbench.files import write_atomic
from advbench.models.untouched import untouched
from advbench.record import Record
from advbench.threat import around

_PICTURED_IMAGES = 16


@dataclass(frozen=True)
class Examples:
    """n images before and after an attack.

    x, x_adv: (n, C, H, W) float32 in [0, 1], equal where no adversarial point was found.
    y, before, after: (n,) int64, labels and the predictions on x and on x_adv.
    index: (n,) int64, positions in the test split.
    felled: (n,) bool, whether the attack changed a correct prediction inside the ball.
    size: (n,) float64, norm of x_adv - x; attacks that seek the nearest point may exceed eps.
    target: the class that the attack aimed at, if any.
    """

    x: NDArray[np.float32]
    x_adv: NDArray[np.float32]
    y: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    index: NDArray[np.int64]
    felled: NDArray[np.bool_]
    size: NDArray[np.float64]
    class_names: tuple[str, ...]
    target: int | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many images were right, were felled, and are robust; with a target, how many were felled to it."""
        right = self.before == self.y
        found = {
            "right": int(right.sum()),
            "felled": int((self.felled & right).sum()),
            "robust": int((right & ~self.felled).sum()),
        }
        if self.target is not None:
            found["reached"] = int((self.felled & right & (self.after == self.target)).sum())
        return found

    def name(self, label: int) -> str:
        """The name of a class, or its number if the dataset has no names."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


def collect(net: nn.Module, data: Dataset, result: Evaluation) -> Examples:
    """The points that `result` found on `data`, with the predictions of `net` before and after."""
    x, y = data.batch(slice(None))
    eps = torch.full((len(y),), result.record.eps[0], dtype=torch.float64, device=x.device)
    x_adv = x.clone()
    for row, point in result.points.items():
        x_adv[row] = point.to(x.device)
    with untouched(net), exact_kernels(x.device), torch.no_grad():
        rng.reseed(result.record.seed)  # for a random model
        before = torch.cat([net(part).argmax(1) for part in x.split(256)])
        after = torch.cat([net(part).argmax(1) for part in x_adv.split(256)])
    return Examples(
        x=x.cpu().numpy(),
        x_adv=x_adv.cpu().numpy(),
        y=y.cpu().numpy(),
        before=before.cpu().numpy(),
        after=after.cpu().numpy(),
        index=data.indices.cpu().numpy(),
        felled=(result.fates.fell == 0) & (result.fates.by >= 0),
        size=around(result.record.norm, x, eps).size(x_adv.double() - x.double()).cpu().numpy(),
        class_names=data.class_names,
        target=next((one for ref in result.record.attack if isinstance(one := ref.settings.get("target"), int)), None),
    )


def write(examples: Examples, record: Record, out: Path) -> None:
    """Write examples.npz, examples.csv, examples.png and attack.json to `out`, each atomically. Raises UserError."""
    title = f"{record.model.spec}: {record.attack_name}, {record.norm} eps {record.curve[0].eps_text}"
    arrays: dict[str, Any] = {name: value for name, value in vars(examples).items() if isinstance(value, np.ndarray)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    write_atomic(out / "examples.npz", stream.getvalue())
    write_atomic(out / "examples.csv", table(examples))
    write_atomic(out / "examples.png", picture(panels(examples), title))
    write_atomic(out / "attack.json", json.dumps(record.model_dump(mode="json", by_alias=True), indent=1) + "\n")


def table(examples: Examples) -> str:
    """CSV with a row for each image."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("index", "label", "before", "after", "felled", "size"))
    for row in range(len(examples.y)):
        words = (csv_text(examples.name(int(x[row]))) for x in (examples.y, examples.before, examples.after))
        writer.writerow(
            (examples.index[row], *words, str(bool(examples.felled[row])).lower(), f"{examples.size[row]:.6g}")
        )
    return stream.getvalue()


def panels(examples: Examples) -> list[tuple[Panel, Panel, Panel]]:
    """For each pictured image: clean, magnified perturbation, adversarial. Images that fell come first."""
    right = examples.before == examples.y
    order = np.argsort(~(examples.felled & right), kind="stable")[:_PICTURED_IMAGES]
    found = []
    for row in order:
        change = examples.x_adv[row] - examples.x[row]
        top = float(np.abs(change).max())
        magnified = 0.5 + change * (0.5 / top if top else 1.0)
        wrong = bool(examples.after[row] != examples.y[row])
        found.append(
            (
                Panel(examples.x[row], examples.name(int(examples.before[row])), alarming=not right[row]),
                Panel(magnified, f"x {0.5 / top:.3g}" if top else "none found"),
                Panel(examples.x_adv[row], examples.name(int(examples.after[row])), alarming=wrong),
            )
        )
    return found
