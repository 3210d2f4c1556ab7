"""The 8 of the 15 common corruptions that need neither OpenCV nor image files: Hendrycks and Dietterich 2019.

The formulas and constants are those of CIFAR-10-C (arXiv:1903.12261, the authors' code was read), for images of any
size and for grey ones too. Noise, defocus, pixelation and JPEG take fine detail away or cover it, against which
adversarial training helps; brightness and contrast do not.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.rng import fold, keys

Array = NDArray[np.float64]  # (C, H, W) in [0, 1]; a corruption may leave this range, which is clipped afterwards


def _gaussian_noise(x: Array, scale: float, rng: np.random.Generator) -> Array:
    return x + scale * rng.standard_normal(x.shape)


def _shot_noise(x: Array, photons: float, rng: np.random.Generator) -> Array:
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: Array, share: float, rng: np.random.Generator) -> Array:
    """Each element becomes 0 or 1 with the probability `share` / 2 each."""
    return np.where(rng.random(x.shape) < share, (rng.random(x.shape) < 0.5).astype(float), x)


def _defocus_blur(x: Array, disk: tuple[float, float], rng: np.random.Generator) -> Array:
    """The mean over a disk whose edge is softened. `disk`: its radius and the softening, in pixels."""
    radius, soft = disk
    side = np.arange(-3, 4)
    kernel = (side[:, None] ** 2 + side**2 <= radius**2).astype(float)
    taps = np.exp(-np.array([1, 0, 1]) / (2 * soft**2))
    for axis in (0, 1):
        kernel = ndimage.convolve1d(kernel, taps, axis, mode="constant")
    return ndimage.correlate(x, (kernel / kernel.sum())[None], mode="mirror")


def _brightness(x: Array, more: float, rng: np.random.Generator) -> Array:
    """The value in the HSV colour space, which is the largest channel, grows; hue and saturation stay."""
    value = x.max(0)
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _contrast(x: Array, factor: float, rng: np.random.Generator) -> Array:
    mean = x.mean((1, 2), keepdims=True)
    return mean + factor * (x - mean)


def _pixelate(x: Array, factor: float, rng: np.random.Generator) -> Array:
    image = _picture(x)
    width, height = (max(1, int(side * factor)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return _array(small.resize(image.size, Image.Resampling.BOX))


def _jpeg_compression(x: Array, quality: int, rng: np.random.Generator) -> Array:
    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=quality)
    return _array(Image.open(file))


_MAKE: dict[str, tuple[Callable[[Array, Any, np.random.Generator], Array], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.1)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
}  # each with its constants at severities 1 to 5
SIMPLE = tuple(_MAKE)


def check_simple(data: Dataset) -> None:
    """Raise UserError for images of another number of channels than 1 or 3."""
    if data.shape[0] not in (1, 3):
        raise UserError(f"{data.name} has images of {data.shape[0]} channels: corruptions need 1 or 3")


def corrupted_simply(data: Dataset, name: str, severity: int, *, seed: int) -> Tensor:
    """The images of `data` (1 or 3 channels) after the corruption `name` of SIMPLE: float32 (N, C, H, W) on its device.

    They are in [0, 1], at multiples of 1/255 as in CIFAR-10-C. The result for an image depends only on the image, its
    index, `name`, `severity` (1 to 5) and `seed`.
    """
    corrupt, constants = _MAKE[name]
    draws = fold(keys(seed, f"corruption {name}", data.indices.cpu()), severity) & (2**32 - 1)
    images = (data.images.cpu().double() / data.scale).numpy()
    changed = [
        corrupt(image, constants[severity - 1], np.random.default_rng(draw))
        for image, draw in zip(images, draws.tolist(), strict=True)
    ]
    levels = np.floor(np.stack(changed).clip(0, 1) * 255 + 1e-9)  # bytes come back as themselves
    return (torch.from_numpy(levels).float() / 255).to(data.device)


def _picture(x: Array) -> Image.Image:
    pixels = np.round(x * 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _array(image: Image.Image) -> Array:
    pixels = np.asarray(image, dtype=np.float64) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
