"""Fates: where on the eps grid each sample fell, and by which attack; and the numbers that follow from them."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advbench.errors import UserError
from advbench.files import write_atomic

NEVER = int(np.iinfo(np.int16).max)  # beyond every index
_LARGEST = 256 * 2**20  # bytes that an archive may unpack to, enough for more than 10 million samples


@dataclass(frozen=True, eq=False, repr=False)
class Fates:
    """Each sample's fate, in the order of the evaluated images. Raises UserError for arrays that are no fates.

    `fell` (N,) int16: index of the first eps of the rising grid at which the sample fell, -1 if it stands at all of
    them.
    `by` (N,) int16: index of the attack that felled it, the first in the list when several did; -1 where `fell` is -1.
    Files of others' adversarial images follow the attacks in that list.
    Where the model is wrong about the clean image, no attack was needed: `fell` is 0 and `by` is -1, whether or not 0
    is on the grid.
    `norm` (N,) float64 or None: size of the smallest perturbation found, nan where unknown.
    `proved` (N,) int16 or None: index of the last eps at which the sample is proved to stand, -1 where at none.
    `logits` (M, K) float32 or None: the answers of a model from outside to the first clean images. It may change where
    no hash does, so its record is reused only where these agree.
    """

    fell: NDArray[np.int16]
    by: NDArray[np.int16]
    norm: NDArray[np.float64] | None = None
    logits: NDArray[np.float32] | None = None
    proved: NDArray[np.int16] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fell", _vector("fell", self.fell, np.int16))
        object.__setattr__(self, "by", _vector("by", self.by, np.int16))
        if self.norm is not None:
            object.__setattr__(self, "norm", _vector("norm", self.norm, np.float64))
            if bool((self.norm < 0).any()):
                raise UserError("fates: norm must hold sizes of at least 0, or nan")
        if self.logits is not None:
            object.__setattr__(self, "logits", np.asarray(self.logits, dtype=np.float32))
            if self.logits.ndim != 2 or not 0 < len(self.logits) <= len(self.fell):
                raise UserError("fates: logits must be a row of numbers for each of the first images")
        if self.proved is not None:
            object.__setattr__(self, "proved", _vector("proved", self.proved, np.int16))
        if any(part is not None and len(part) != len(self.fell) for part in (self.by, self.norm, self.proved)):
            raise UserError("fates: fell, by, norm and proved must be of one length")
        if len(self.fell) == 0:
            raise UserError("fates: there must be at least one sample")
        if self.proved is not None and (int(self.proved.min()) < -1 or len(contradictions(self.fell, self.proved))):
            raise UserError("fates: proved must hold indices below that at which the sample falls, or -1")
        if int(self.fell.min()) < -1 or int(self.by.min()) < -1:
            raise UserError("fates: fell and by must hold indices, or -1")
        alone = self.by < 0
        if bool((alone & (self.fell > 0)).any()) or bool((~alone & (self.fell < 0)).any()):
            raise UserError("fates: by must be -1 where a sample stands or is wrong without an attack, and only there")

    def __repr__(self) -> str:
        right, stand = int(self.clean.sum()), int((self.fell < 0).sum())
        return f"<Fates of {len(self)} images: {right} right without an attack, {stand} standing at every eps>"

    def __len__(self) -> int:
        return len(self.fell)

    def fit(self, eps: Sequence[float], attacks: int) -> None:
        """Raise UserError unless these fates can belong to that eps grid and that number of attacks."""
        proved = -1 if self.proved is None else int(self.proved.max())
        if max(proved, int(self.fell.max())) >= len(eps) or int(self.by.max()) >= attacks:
            raise UserError(f"fates: an index lies beyond the {len(eps)} eps or the {attacks} attacks")
        if eps[0] == 0 and bool((self.by[self.fell == 0] >= 0).any()):
            raise UserError("fates: a sample that falls at eps 0 is wrong without an attack: by must be -1")

    @property
    def clean(self) -> NDArray[np.bool_]:
        """(N,) bool: the model is right about the clean image."""
        return (self.fell != 0) | (self.by >= 0)

    def standing(self, point: int) -> NDArray[np.bool_]:
        """(N,) bool: the sample stands at grid point `point`, an index."""
        return (self.fell < 0) | (self.fell > point)

    def areas(self, eps: Sequence[float]) -> NDArray[np.float64]:
        """(N,) in [0, 1]: the share of the range of eps over which each sample stands, by the trapezoid rule.

        On a grid of one eps: 1 where the sample stands, else 0.
        """
        total = np.append(0.0, np.cumsum(_weights(eps)))
        return np.where(self.fell < 0, 1.0, total[np.maximum(self.fell, 0)])

    def auc(self, eps: Sequence[float]) -> float:
        """Area under the accuracy-eps curve divided by the range of eps, in [0, 1]: the mean of `areas`."""
        return min(1.0, math.fsum(self.areas(eps)) / len(self))

    def distances(self, eps: Sequence[float]) -> NDArray[np.float64]:
        """(N,) size of the smallest perturbation known to fell each sample, inf where none is known.

        It is at most the eps at which the sample fell, and 0 where the model is wrong about the clean image.
        """
        bound = np.append(np.asarray(eps, dtype=np.float64), np.inf)[self.fell]
        found = bound if self.norm is None else np.fmin(bound, self.norm)
        return np.where(self.clean, found, 0.0)

    def median_norm(self, eps: Sequence[float]) -> float | None:
        """Median of `distances`; None without `norm`, or when at least half of the samples never fell."""
        if self.norm is None:
            return None
        middle = float(np.median(self.distances(eps)))
        return middle if math.isfinite(middle) else None

    def lowered(self, by: int, fell: NDArray[np.int64], norm: NDArray[np.float64]) -> Fates:
        """These fates, in which attack number `by` fells the samples that it fells at a lower eps than those before it.

        `fell` (N,): the index of the lowest eps above 0 at which it does, NEVER where it does not. `norm` (N,): the
        size of its perturbation, inf where it has none. Where sizes are known, at the same eps the smaller one counts.
        """
        was = np.where(self.fell < 0, NEVER, self.fell)
        lower = fell < was
        if self.norm is not None:
            lower |= (fell == was) & (norm < self.norm * (1 - 1e-6))  # no nan is smaller
        lower &= self.clean
        sizes = None if self.norm is None else np.where(lower, norm, self.norm)
        return Fates(np.where(lower, fell, self.fell), np.where(lower, by, self.by), sizes, self.logits, self.proved)

    def verdicts(self) -> bytes:
        """The bytes that a record's id covers: `fell`, then `by`, then `proved` if there is one, little-endian."""
        parts = (self.fell, self.by, self.proved)
        return b"".join(part.astype("<i2").tobytes() for part in parts if part is not None)

    def to_npz(self, seal: str = "") -> bytes:
        """The archive's bytes, which are the same for equal fates and `seal`, the hash from `Record.seal`."""
        arrays: dict[str, Any] = {"fell": self.fell, "by": self.by, "seal": np.frombuffer(seal.encode(), np.uint8)}
        if self.norm is not None:
            arrays["norm"] = self.norm
        if self.logits is not None:
            arrays["logits"] = self.logits
        if self.proved is not None:
            arrays["proved"] = self.proved
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)
        return stream.getvalue()

    def save(self, path: Path, seal: str = "") -> None:
        """Write the archive `path` whole, replacing what was there."""
        write_atomic(path, self.to_npz(seal))

    @classmethod
    def load(cls, path: Path) -> Fates:
        """Read an archive. UserError, naming it, when it is missing or damaged."""
        return load_sealed(path)[0]

    def digest(self) -> str:
        """sha256 of the verdicts, `norm` and `logits`, in hexadecimal."""
        norm = b"" if self.norm is None else self.norm.astype("<f8").tobytes()
        logits = b"" if self.logits is None else self.logits.astype("<f4").tobytes()
        return hashlib.sha256(self.verdicts() + norm + logits).hexdigest()


def contradictions(fell: NDArray[np.int16], proved: NDArray[np.int16]) -> NDArray[np.int64]:
    """The samples (M,) that fall at an eps at which they are proved to stand, arrays (N,) as in `Fates`: none, unless
    there is a defect."""
    return np.flatnonzero((fell >= 0) & (fell <= proved))


def load_sealed(path: Path) -> tuple[Fates, str]:
    """The fates in an archive and the seal written with them. UserError when it is missing or damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            if sum(member.file_size for member in arrays.zip.infolist()) > _LARGEST:
                raise UserError(f"it unpacks to more than {_LARGEST >> 20} MB")
            fates = Fates(arrays["fell"], arrays["by"], arrays.get("norm"), arrays.get("logits"), arrays.get("proved"))
            return fates, bytes(arrays["seal"].astype(np.uint8)).decode("ascii")
    except FileNotFoundError as error:
        both = f"{path.stem}.json and {path.name}"
        raise UserError(
            f"{path} is missing: keep {both} together, and commit both, since they are one record"
        ) from error
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except Exception as error:  # zipfile, zlib and numpy raise many kinds of error for a damaged archive
        raise UserError(f"{path} is damaged, or no archive of NumPy ({type(error).__name__})") from error


def _vector(name: str, values: Any, kind: type[np.generic]) -> NDArray[Any]:
    array = np.asarray(values)
    wanted = "iu" if kind is np.int16 else "fiu"
    if array.ndim != 1 or array.dtype.kind not in wanted:
        raise UserError(f"fates: {name} must be one row of numbers, not {array.dtype} of shape {array.shape}")
    with np.errstate(invalid="ignore"):
        result = array.astype(kind)
    if kind is np.int16 and not np.array_equal(result, array):
        raise UserError(f"fates: {name} does not fit 16 bits")
    result.setflags(write=False)
    return result


def _weights(eps: Sequence[float]) -> NDArray[np.float64]:
    if len(eps) == 1:
        return np.ones(1)
    gaps = np.diff(np.asarray(eps, dtype=np.float64))
    weights: NDArray[np.float64] = (np.append(gaps, 0.0) + np.append(0.0, gaps)) / 2 / (eps[-1] - eps[0])
    return weights
