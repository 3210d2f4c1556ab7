"""The 15 common corruptions at 5 severities: Hendrycks and Dietterich 2019, arXiv:1903.12261.

They are the published ones (`corruption_files.py`) where the cache folder has those of the images. Otherwise the
package imagecorruptions-imaug makes them, with the constants of ImageNet-C. On small images these are harsher than
CIFAR-10-C, so results of the two are not comparable.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from advbench.data import corruption_files
from advbench.data.cache import VARIABLE, cache_folder
from advbench.data.corruption_files import COMMON, PUBLISHED, SEVERITIES
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.rng import fold, keys

__all__ = ["COMMON", "PACKAGE", "PUBLISHED", "SEVERITIES", "corrupted", "source_of"]
PACKAGE = "imagecorruptions-imaug"
MIN_SIDE = 28  # pixels: smaller images are refused
PACKAGE_SIDE = 32  # pixels: the package needs at least so many, so smaller images are padded
_NOISES = ("gaussian_noise", "shot_noise", "impulse_noise")
_SEEDED = ("impulse_noise", "glass_blur")  # the package takes a seed for these

Image = NDArray[np.uint8]


def source_of(data: Dataset, asked: str = "auto") -> str:
    """The source of the corrupted images of `data`: one of PUBLISHED, or the package with its version.

    `asked`: "auto", which prefers the first, or a value that `source_of` returned before. Raises UserError if that
    source is not available, or for images of other shapes.
    """
    channels, *sides = data.shape
    if channels not in (1, 3) or min(sides) < MIN_SIDE:
        shape = "x".join(map(str, data.shape))
        raise UserError(f"corruptions need 1 or 3 channels and at least {MIN_SIDE} pixels a side, not {shape}")
    found = corruption_files.published(data)
    if found is not None and asked in ("auto", found):
        return found
    if asked in PUBLISHED:
        where = f"{cache_folder()} ({VARIABLE} names another folder)"
        raise UserError(f"{asked} is not whole in {where}, or is not for the images of {data.name}")
    _package()
    here = f"{PACKAGE} {metadata.version(PACKAGE)}"
    if asked not in ("auto", here):
        raise UserError(f"corruptions by {asked!r} are not available: choose from auto, {', '.join(PUBLISHED)}, {here}")
    return here


def corrupted(data: Dataset, name: str, severity: int, *, source: str, seed: int) -> Tensor:
    """The images of `data` after the corruption `name`, float32 (N, C, H, W) in [0, 1] on its device.

    The result for an image depends only on the image, its index, `name`, `severity` (1 to 5) and `seed`. Raises
    UserError without the package, or if the published files do not fit.
    """
    if source in PUBLISHED:
        return corruption_files.read(data, source, name, severity)
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
    if channels == 1:  # of three draws of noise the mean would be weaker than one
        return result[:1].contiguous() if name in _NOISES else result.mean(0, keepdim=True)
    return result.contiguous()


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
            f"or put the published files ({', '.join(PUBLISHED)}) into {cache_folder()}"
        ) from error
    return corrupt
