"""The 15 common corruptions at 5 severities: Hendrycks and Dietterich 2019, arXiv:1903.12261.

For CIFAR-10 they are read from the folder CIFAR-10-C in the cache folder, if it is there. Otherwise the package
imagecorruptions-imaug makes them, with the constants of ImageNet-C. On small images these are harsher than CIFAR-10-C,
so results of the two are not comparable.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from advbench.data.cache import VARIABLE, cache_folder
from advbench.data.dataset import Dataset
from advbench.errors import UserError, reading
from advbench.rng import fold, keys

COMMON = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
PACKAGE = "imagecorruptions-imaug"
PUBLISHED = "CIFAR-10-C"
MIN_SIDE = 28  # pixels: smaller images are refused
PACKAGE_SIDE = 32  # pixels: the package needs at least so many, so smaller images are padded
_SEEDED = ("impulse_noise", "glass_blur")  # the package takes a seed for these

Image = NDArray[np.uint8]


def source_of(data: Dataset, asked: str = "auto") -> str:
    """The source of the corrupted images of `data`: "CIFAR-10-C", or the package with its version.

    `asked`: "auto", which prefers the first, or a value that `source_of` returned before. Raises UserError if that
    source is not available, or for images of other shapes.
    """
    channels, *sides = data.shape
    if channels not in (1, 3) or min(sides) < MIN_SIDE:
        shape = "x".join(map(str, data.shape))
        raise UserError(f"corruptions need 1 or 3 channels and at least {MIN_SIDE} pixels a side, not {shape}")
    folder = published(data)
    if asked == PUBLISHED or (asked == "auto" and folder is not None):
        if folder is None:
            where = f"{cache_folder()} ({VARIABLE} names another folder)"
            raise UserError(f"{PUBLISHED} is not in {where}, or is not for the images of {data.name}")
        return PUBLISHED
    _package()
    here = f"{PACKAGE} {metadata.version(PACKAGE)}"
    if asked not in ("auto", here):
        raise UserError(f"corruptions by {asked!r} are not available: choose from auto, {PUBLISHED}, {here}")
    return here


def published(data: Dataset) -> Path | None:
    """The folder of CIFAR-10-C, if it is complete and `data` holds test images of CIFAR-10; else None."""
    folder = cache_folder() / PUBLISHED
    complete = all((folder / f"{name}.npy").is_file() for name in (*COMMON, "labels"))
    return folder if complete and (data.name, data.split) == ("cifar10", "test") else None


def corrupted(data: Dataset, name: str, severity: int, *, source: str, seed: int) -> Tensor:
    """The images of `data` after the corruption `name`, float32 (N, C, H, W) in [0, 1] on its device.

    The result for an image depends only on the image, its index, `name`, `severity` (1 to 5) and `seed`. Raises
    UserError without the package, or if the files of CIFAR-10-C do not fit.
    """
    if source == PUBLISHED:
        return _read(data, name, severity)
    corrupt = _package()
    images = torch.round(data.images.cpu().float() * (255 / data.scale)).to(torch.uint8)
    draws = fold(keys(seed, f"corruption {name}", data.indices.cpu()), severity) & (2**32 - 1)
    changed = [_one(corrupt, image, name, severity, draw) for image, draw in zip(images, draws.tolist(), strict=True)]
    return torch.stack(changed).to(data.device)


def _one(corrupt: Callable[..., Image], image: Tensor, name: str, severity: int, draw: int) -> Tensor:
    channels, height, width = image.shape
    down, across = max(PACKAGE_SIDE - height, 0), max(PACKAGE_SIDE - width, 0)
    margins = (across // 2, across - across // 2, down // 2, down - down // 2)
    padded = functional.pad(image[None].float(), margins, mode="replicate")[0]
    colour = padded.expand(3, -1, -1).permute(1, 2, 0).to(torch.uint8).contiguous().numpy()
    more: dict[str, Any] = {"seed": draw} if name in _SEEDED else {}
    with _drawing(draw):
        found = corrupt(colour, severity=severity, corruption_name=name, **more)
    result = torch.from_numpy(np.array(found)).permute(2, 0, 1).float() / 255
    result = result[:, margins[2] : margins[2] + height, margins[0] : margins[0] + width]
    return result.mean(0, keepdim=True) if channels == 1 else result.contiguous()


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Seed NumPy's global random state, and restore it at the end. The package's output and warnings are suppressed."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(before)


def _package() -> Callable[..., Image]:
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        raise UserError(
            f"corruptions are made by {PACKAGE}, which is missing ({error}): pip install 'advbench[corruptions]', "
            f"or put {PUBLISHED} into {cache_folder()}"
        ) from error
    return corrupt


def _read(data: Dataset, name: str, severity: int) -> Tensor:
    folder = cache_folder() / PUBLISHED
    with reading(folder):
        images = np.load(folder / f"{name}.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
    count = len(images) // len(SEVERITIES)
    rows = data.indices.cpu().numpy()
    if images.ndim != 4 or len(labels) != len(images) or rows.max() >= count:
        raise UserError(f"{folder}/{name}.npy holds {len(images)} images, not {len(SEVERITIES)} times the test images")
    at = rows + (severity - 1) * count
    if not np.array_equal(labels[at], data.labels.cpu().numpy()):
        raise UserError(f"{folder}/labels.npy has other labels than {data.name}")
    return torch.from_numpy(images[at]).permute(0, 3, 1, 2).contiguous().to(data.device).float() / 255
