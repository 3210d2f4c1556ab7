"""Adversarial images from anyone: read from a file, judged as the hits of attacks are, and merged into fates.

Whatever a file says of its images, only the model decides: an image counts where it lies in the ball of an eps and the
model itself, in eval mode and float32, gets it wrong in a pass of its own. It is merged after the attacks, which
therefore find what they find without it, and a fate can only become worse.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench import rng
from advbench.data.dataset import Dataset
from advbench.engine.losses import wrong
from advbench.engine.oracle import Oracle
from advbench.engine.whole_batch import ROUNDING, unrounded
from advbench.errors import UserError, reading
from advbench.record import EXTERNAL, NEVER, External, Fates, Flag
from advbench.threat import around

IMAGES, PLACES = ("x_adv", "adversarials"), ("index", "indices")  # the names that the arrays may have
_LARGEST = 4 * 2**30  # bytes that they may unpack to
_NEEDED = (
    "what is needed is an .npz of plain arrays: x_adv (N, C, H, W), floats in [0, 1], and index (N,), the positions of "
    "the images in the test split, such as advbench attack writes"
)


@dataclass(frozen=True, eq=False)
class Adversarials:
    """A file of adversarial images.

    `name`: what records call it. `sha256`: of the file. `x_adv`: (N, C, H, W) float32. `index`: (N,) int64, the
    positions in the split of the images that they were made from; one may occur several times.
    """

    name: str
    sha256: str
    x_adv: NDArray[np.float32]
    index: NDArray[np.int64]


def read_adversarials(paths: Sequence[Path], known: Sequence[External] = ()) -> tuple[Adversarials, ...]:
    """The files `paths`, none of which is among the `known` ones, named after them, each by another name.

    Raises UserError for what is no such file, and for one that is given twice.
    """
    names, hashes = [one.name for one in known], {one.sha256: one.name for one in known}
    found = []
    for path in paths:
        one = _read(path)
        if one.sha256 in hashes:
            raise UserError(f"{path} holds the adversarial images of {hashes[one.sha256]} again: give each file once")
        number, name = 1, one.name
        while name in names:
            number += 1
            name = f"{one.name}-{number}"
        names.append(name)
        hashes[one.sha256] = name
        found.append(replace(one, name=name))
    return tuple(found)


def _read(path: Path) -> Adversarials:
    with reading(f"{path}: {_NEEDED}"):
        content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            names = [next((name for name in both if name in stored), "") for both in (IMAGES, PLACES)]
            if not all(names):
                raise UserError(f"it holds {', '.join(stored) or 'nothing'}")
            if sum(stored.zip.getinfo(f"{name}.npy").file_size for name in names) > _LARGEST:
                raise UserError(f"they unpack to more than {_LARGEST >> 30} GB")
            images, places = (stored[name] for name in names)
        if images.ndim != 4 or images.dtype.kind != "f" or not len(images):
            raise UserError(f"its images are {images.dtype} of shape {images.shape}")
        if places.shape != images.shape[:1] or places.dtype.kind not in "iu":
            raise UserError(f"its positions are {places.dtype} of shape {places.shape}")
    except Exception as error:  # numpy, zipfile and zlib raise many kinds of error for what is no archive
        reason = f" ({error})" if isinstance(error, UserError) else ""
        raise UserError(f"{path} is no file of adversarial images{reason}: {_NEEDED}") from error
    with np.errstate(all="ignore"):  # what does not fit float32 is not finite then, and refused
        x_adv = images.astype(np.float32)
    name = re.sub(r"[^\w.+-]+", "_", path.stem)[:60] or "images"
    return Adversarials(name, hashlib.sha256(content).hexdigest(), x_adv, places.astype(np.int64))


@dataclass(frozen=True)
class Tally:
    """What became of the `count` images of the file `name`.

    `verified`: how many of them fool the model inside a ball. `refused`: how many of the others there are, by the
    reason. `felled`: how many of the evaluated images fell to it at a lower eps than to the attacks, and to the files
    before it.
    """

    name: str
    count: int
    verified: int
    refused: Mapping[str, int]
    felled: int

    @property
    def line(self) -> str:
        """All of it in one line."""
        found = f"external:{self.name}: {self.verified} of {self.count} adversarial images verified"
        refused = ", ".join(f"{count} {reason}" for reason, count in self.refused.items())
        return f"{found}, of which {self.felled} lower the curve{f'; refused: {refused}' if refused else ''}"


@dataclass(frozen=True)
class Merged:
    """`fates` with the files merged in. `files`: as records credit them. `tallies`: what became of each file.

    `points`: by row, the image (C, H, W) that felled it, on the CPU. `nonfinite`: how many hits have NaN or infinite
    logits. `forwards`: how many passes of single images that took.
    """

    fates: Fates
    files: tuple[External, ...]
    tallies: tuple[Tally, ...]
    points: Mapping[int, Tensor]
    nonfinite: int
    forwards: int

    def flags(self, known: Sequence[Flag]) -> list[Flag]:
        """The `known` flags of the attacks, with those on the files."""
        n, felled = len(self.fates), sum(one.felled for one in self.files)
        found = [flag for flag in known if flag.name != EXTERNAL]
        if self.nonfinite and all(flag.name != "non-finite-attacked" for flag in found):
            detail = (
                f"NaN or infinite logits on {self.nonfinite} adversarial images made elsewhere: they count as wrong"
            )
            found.append(Flag(name="non-finite-attacked", severity="broken", detail=detail))
        if felled:
            each = ", ".join(f"external:{one.name} {one.felled}" for one in self.files if one.felled)
            detail = (
                f"{felled} of {n} images fell to adversarial images made elsewhere, and to no attack as early ({each})"
            )
            found.append(Flag(name="external", severity="note", k=felled, n=n, detail=detail))
        return found


def merge(
    given: Sequence[Adversarials],
    fates: Fates,
    *,
    oracle: Oracle,
    data: Dataset,
    norm: str,
    sizes: Sequence[float],
    attacks: int,
    before: Sequence[External] = (),
    seed: int,
) -> Merged:
    """`fates`, of that many `attacks` and the files `before`, where the `given` files lower them on the grid `sizes`.

    `oracle` judges by the model, in eval mode and on the device of `data`; a random one draws from `seed`.
    """
    tallies: list[Tally] = []
    points: dict[int, Tensor] = {}
    nonfinite, spent = 0, oracle.forwards
    with rng.kept(seed):
        for by, one in enumerate(given, attacks + len(before)):
            verified = _verify(one, fates, oracle, data, norm, sizes)
            was, fates = fates, fates.lowered(by, verified.fell, verified.size)
            rows = np.flatnonzero(fates.by == by)
            points |= {row: verified.points[row] for row in rows.tolist()}
            nonfinite += verified.nonfinite
            count, lowered = len(one.index), int((fates.by != was.by).sum())
            passed = count - sum(verified.refused.values())
            tallies.append(Tally(one.name, count, passed, dict(verified.refused), lowered))
    every = (*before, *(External(name=one.name, sha256=one.sha256, felled=0) for one in given))
    files = tuple(
        one.model_copy(update={"felled": int((fates.by == by).sum())}) for by, one in enumerate(every, attacks)
    )
    return Merged(fates, files, tuple(tallies), points, nonfinite, oracle.forwards - spent)


@dataclass
class _Verified:
    """By evaluated image: the lowest grid point at which one of a file's images fells it, that one and its size."""

    fell: NDArray[np.int64]
    size: NDArray[np.float64]
    points: dict[int, Tensor]
    refused: Counter[str]
    nonfinite: int = 0


def _verify(
    given: Adversarials, fates: Fates, oracle: Oracle, data: Dataset, norm: str, sizes: Sequence[float]
) -> _Verified:
    n = len(fates)
    found = _Verified(np.full(n, NEVER), np.full(n, np.inf), {}, Counter())
    shape = given.x_adv.shape[1:]
    if shape != data.shape:
        found.refused[f"of shape {'x'.join(map(str, shape))}, not {'x'.join(map(str, data.shape))}"] = len(given.index)
        return found
    place = {index: row for row, index in enumerate(data.indices.tolist())}
    rows = np.array([place.get(index, -1) for index in given.index.tolist()])
    finite, in_range = (np.empty(len(rows), dtype=bool) for _ in range(2))
    for at, image in enumerate(given.x_adv):  # one by one: all at once would need twice the memory
        finite[at] = np.isfinite(image).all()
        in_range[at] = finite[at] and image.min() >= -ROUNDING and image.max() <= 1 + ROUNDING
    left = np.ones(len(rows), dtype=bool)
    for reason, refused in (
        ("of images that are not evaluated", rows < 0),
        ("not finite", ~finite),
        ("outside [0, 1]", ~in_range),
        ("of images that are wrong without an attack", ~fates.clean[rows]),
    ):
        found.refused[reason] += int((left & refused).sum())
        left &= ~refused
    for some in np.array_split(np.flatnonzero(left), range(oracle.slots, int(left.sum()), oracle.slots)):
        _judge(given.x_adv[some], rows[some], found, oracle, data, norm, sizes)
    found.refused = +found.refused
    return found


def _judge(
    images: NDArray[np.float32],
    rows: NDArray[np.int64],
    found: _Verified,
    oracle: Oracle,
    data: Dataset,
    norm: str,
    sizes: Sequence[float],
) -> None:
    """Add to `found` what the model says of `images` (m, C, H, W) of the evaluated images `rows` (m,)."""
    z = torch.from_numpy(images).to(data.device)
    x, y = data.batch(torch.from_numpy(rows).to(data.device))
    inside, asked, fell = (torch.zeros(len(z), dtype=torch.bool, device=z.device) for _ in range(3))
    for point, eps in enumerate(sizes):
        some = (~asked & ~fell).nonzero()[:, 0]
        if eps == 0 or not len(some):  # at eps 0 no attack counts
            continue
        region = around(norm, x[some], torch.full((len(some),), eps, dtype=torch.float64, device=z.device))
        moved = unrounded(region, z[some])
        within = region.contains(moved).nonzero()[:, 0]
        if not len(within):
            continue
        at, tried = some[within], moved[within]
        logits = oracle.logits(tried, y[at])
        hits = wrong(logits, y[at])
        inside[at], fell[at] = True, hits
        asked[at] = (tried == z[at]).flatten(1).all(1)  # else a larger ball may hold the image as it is
        found.nonfinite += int((~logits[hits].isfinite()).any(1).sum())
        sizes_of = region.size(moved.double() - x[some].double())[within].tolist()
        for hit, row in zip(hits.nonzero()[:, 0].tolist(), rows[at[hits].cpu().numpy()].tolist(), strict=True):
            if (point, sizes_of[hit]) < (found.fell[row], found.size[row]):
                found.fell[row], found.size[row], found.points[row] = point, sizes_of[hit], tried[hit].cpu()
    found.refused["outside the ball"] += int((~inside).sum())
    found.refused["right answers"] += int((inside & ~fell).sum())
