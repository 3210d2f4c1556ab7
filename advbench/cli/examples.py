"""Adversarial examples as files: arrays, images, a table and a picture. Loads torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from advbench import rng
from advbench.attacks.aimed import aimed_at
from advbench.cli.picture import Panel, picture
from advbench.data.dataset import Dataset
from advbench.engine.kernels import exact_kernels
from advbench.engine.losses import margin
from advbench.engine.oracle import Oracle
from advbench.escape import csv_text
from advbench.evaluator import Evaluation
from advbench.evaluator.rounding import LEVELS, rounded
from advbench.files import write_atomic
from advbench.models.untouched import untouched
from advbench.record import Record
from advbench.threat import around

_PICTURED_IMAGES = 16
IMAGES = "images"  # the folder of the PNG files


@dataclass(frozen=True)
class Examples:
    """n images before and after an attack.

    - `x`, `x_adv`: (n, C, H, W) float32 in [0, 1]. Where no adversarial point was found, x_adv is the strongest
      attempt; it is x where the model is wrong about x already, or an attack that seeks the nearest point found none.
    - `y`, `before`, `after`: (n,) int64, labels and the predictions on x and on x_adv.
    - `index`: (n,) int64, positions in the test split.
    - `felled`: (n,) bool, whether the attack changed a correct prediction inside the ball.
    - `by`: (n,) str, the attack that did, else "".
    - `size`, `linf`, `l2`: (n,) float64, norms of x_adv - x: that of the attack, Linf and L2. Attacks that seek the
      nearest point may exceed eps.
    - `margin`: (n,) float32, the largest other logit less that of the label, on x_adv.
    - `confidence_before`, `confidence_after`: (n,) float32, the softmax of the prediction on x and on x_adv.
    - `label_before`, `label_after`: (n,) float32, the softmax of the label on x and on x_adv.
    - `target`: (n,) int64, the classes that the attack aimed at; None if it had none.
    - `rounded`: (n, C, H, W) uint8, x_adv in 8 bit; `rounded_answer`: (n,) int64, the prediction on it where it still
      is an adversarial example inside the ball, else -1. None unless images are written.
    """

    x: NDArray[np.float32]
    x_adv: NDArray[np.float32]
    y: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    index: NDArray[np.int64]
    felled: NDArray[np.bool_]
    by: NDArray[np.str_]
    size: NDArray[np.float64]
    linf: NDArray[np.float64]
    l2: NDArray[np.float64]
    margin: NDArray[np.float32]
    confidence_before: NDArray[np.float32]
    confidence_after: NDArray[np.float32]
    label_before: NDArray[np.float32]
    label_after: NDArray[np.float32]
    class_names: tuple[str, ...]
    target: NDArray[np.int64] | None = None
    rounded: NDArray[np.uint8] | None = None
    rounded_answer: NDArray[np.int64] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many images were right, were felled, and are robust; with targets, how many were felled to theirs; with
        images, how many of the felled ones stay adversarial in 8 bit."""
        right = self.before == self.y
        found = {
            "right": int(right.sum()),
            "felled": int((self.felled & right).sum()),
            "robust": int((right & ~self.felled).sum()),
        }
        if self.target is not None:
            found["reached"] = int((self.felled & right & (self.after == self.target)).sum())
        if self.rounded_answer is not None:
            found["survived"] = int((self.felled & right & (self.rounded_answer >= 0)).sum())
        return found

    @property
    def aim(self) -> str:
        """The one class that was aimed at, or "their targets"."""
        assert self.target is not None
        one = set(self.target.tolist())
        return self.name(one.pop()) if len(one) == 1 else "their targets"

    def name(self, label: int) -> str:
        """The name of a class, or its number if the dataset has no names."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)


def collect(net: nn.Module, data: Dataset, result: Evaluation, *, images: bool = False) -> Examples:
    """The points that `result` found or tried on `data`, with the answers of `net` before and after.

    `images`: round them to 8 bit too.
    """
    record, fates = result.record, result.fates
    x, y = data.batch(slice(None))
    x_adv = result.adversarials.to(x.device)
    felled = (fates.fell == 0) & (fates.by >= 0)
    region = around(record.norm, x, torch.full((len(y),), record.eps[0], dtype=torch.float64, device=x.device))
    sizes = {
        norm: around(norm, x, region.eps).size(x_adv.double() - x.double()) for norm in (record.norm, "linf", "l2")
    }
    oracle = Oracle(
        net,
        slots=record.engine.slots,
        random=any(flag.name == "random" for flag in record.flags),
        rejects=bool(record.model.abstain),
    )
    levels = answers = None
    with untouched(net), exact_kernels(x.device):
        rng.reseed(record.seed)  # for a random model
        before, after = oracle.logits(x), oracle.logits(x_adv)
        if images:
            at = torch.from_numpy(np.flatnonzero(felled)).to(x.device)
            levels, answers = (x_adv * LEVELS).round().to(torch.uint8), torch.full_like(y, -1)
            inner = around(record.norm, x[at], region.eps[at])
            levels[at], answers[at] = rounded(oracle.logits, inner, x_adv[at], y[at])
    class_names = data.class_names
    if record.model.abstain:
        class_names = (*(class_names or map(str, range(data.num_classes))), "rejected")
    names = [attack.name for attack in record.attack]
    aims = [aimed_at(ref.settings, result.logits, result.data, record.seed) for ref in record.attack]
    sure_before, sure_after = before.softmax(1), after.softmax(1)
    arrays = {
        "x": x,
        "x_adv": x_adv,
        "y": y,
        "before": before.argmax(1),
        "after": after.argmax(1),
        "index": data.indices,
        "size": sizes[record.norm],
        "linf": sizes["linf"],
        "l2": sizes["l2"],
        "margin": margin(oracle.judged(after, y), y),
        "confidence_before": sure_before.amax(1),
        "confidence_after": sure_after.amax(1),
        "label_before": sure_before.gather(1, y[:, None])[:, 0],
        "label_after": sure_after.gather(1, y[:, None])[:, 0],
        "target": next((aim for aim in aims if aim is not None), None),
        "rounded": levels,
        "rounded_answer": answers,
    }
    return Examples(
        **{name: None if value is None else value.cpu().numpy() for name, value in arrays.items()},  # type: ignore[arg-type]
        felled=felled,
        by=np.array([names[one] if one >= 0 else "" for one in fates.by]),
        class_names=class_names,
    )


def write(examples: Examples, record: Record, out: Path, formats: Collection[str]) -> None:
    """Write examples.csv, examples.png and attack.json to `out`, each atomically. Raises UserError.

    Of the `formats`, npz is examples.npz, and png the folder `images`: adversarial/INDEX-LABEL-BEFORE-AFTER.png of the
    images that stay adversarial in 8 bit, and clean/INDEX-LABEL.png of all. What an earlier attack left of them goes.
    """
    title = f"{record.model.spec}: {record.attack_name}, {record.norm} eps {record.curve[0].eps_text}"
    archive, folder = out / "examples.npz", out / IMAGES
    if "npz" in formats:
        write_atomic(archive, to_npz(examples))
    else:
        archive.unlink(missing_ok=True)
    written = set()
    for name, image in pngs(examples).items() if "png" in formats else ():
        written.add(folder / name)
        write_atomic(folder / name, image)
    for kind in ("adversarial", "clean"):
        for left in set((folder / kind).glob("*.png")) - written:
            left.unlink()
    write_atomic(out / "examples.csv", table(examples))
    write_atomic(out / "examples.png", picture(panels(examples), title, KEY))
    write_atomic(out / "attack.json", json.dumps(record.model_dump(mode="json", by_alias=True), indent=1) + "\n")


def to_npz(examples: Examples) -> bytes:
    """The arrays of `examples`, those that are there, by their names."""
    arrays: dict[str, Any] = {name: value for name, value in vars(examples).items() if isinstance(value, np.ndarray)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def pngs(examples: Examples) -> dict[str, bytes]:
    """The PNG files by their names: what stays adversarial in 8 bit, and each clean image in 8 bit."""
    assert examples.rounded is not None and examples.rounded_answer is not None
    words = [
        [re.sub(r"[^\w.+-]+", "_", examples.name(int(one))) for one in of]
        for of in (examples.y, examples.before, examples.rounded_answer)
    ]
    clean = np.rint(examples.x * LEVELS).astype(np.uint8)
    found = {}
    for row, (index, label, before, after) in enumerate(zip(examples.index, *words, strict=True)):
        found[f"clean/{index}-{label}.png"] = _png(clean[row])
        if examples.rounded_answer[row] >= 0:
            found[f"adversarial/{index}-{label}-{before}-{after}.png"] = _png(examples.rounded[row])
    return found


def _png(image: NDArray[np.uint8]) -> bytes:
    """The image (C, H, W), C of 1 or 3, as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(stream, format="png")
    return stream.getvalue()


def table(examples: Examples) -> str:
    """CSV with a row for each image."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    numbers = {
        name: getattr(examples, name)
        for name in (
            "size", "linf", "l2", "margin", "confidence_before", "confidence_after", "label_before", "label_after"
        )
    }  # fmt: skip
    writer.writerow(("index", "label", "before", "after", "felled", "by", *numbers))
    for row in range(len(examples.y)):
        words = (csv_text(examples.name(int(x[row]))) for x in (examples.y, examples.before, examples.after))
        felled, by = str(bool(examples.felled[row])).lower(), csv_text(str(examples.by[row]))
        writer.writerow(
            (examples.index[row], *words, felled, by, *(f"{values[row]:.6g}" for values in numbers.values()))
        )
    return stream.getvalue()


KEY = (
    "Number of the image and its class as the model sees it; the change (grey: none), scaled as written; the attacked "
    "image and its class. Red: wrong."
)


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
        clean = f"{examples.index[row]}: {examples.name(int(examples.before[row]))}"
        found.append(
            (
                Panel(examples.x[row], clean, alarming=not right[row]),
                Panel(magnified, f"change x {0.5 / top:.3g}" if top else "no change"),
                Panel(examples.x_adv[row], examples.name(int(examples.after[row])), alarming=wrong),
            )
        )
    return found
