"""Random crops, flips and Cutout, drawn for each sample on its device.

The draw of a sample depends only on (seed, epoch, view, the sample's index in the split), so neither its batch nor the
device changes it. `view` numbers the copies of a sample, for methods that use several.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.rng import fold, integers, keys


def crop_flip(
    images: Tensor,
    indices: Tensor,
    *,
    seed: int,
    epoch: int,
    view: int = 0,
    pad: int = 4,
    flip: bool = True,
    fill: float = 0.0,
) -> Tensor:
    """Pad each image by `pad` pixels of value `fill`, crop a random H x W window, and mirror half (He et al. 2016).

    `images` (B, C, H, W), uint8 or float; `indices` int64 (B,) on the same device. Returns a new tensor of the same
    shape and type.
    """
    batch, channels, height, width = images.shape
    key = keys(seed, "crop", indices, epoch, view)
    below = torch.full_like(key, 2 * pad + 1)
    top, left = integers(fold(key, 0), below), integers(fold(key, 1), below)
    columns = torch.arange(width, device=images.device).expand(batch, width)
    if flip:
        mirrored = integers(fold(key, 2), torch.full_like(key, 2)).bool()
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = columns + left[:, None]
    rows = torch.arange(height, device=images.device) + top[:, None]
    pixels = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).view(batch, 1, height * width)
    padded = F.pad(images, (pad, pad, pad, pad), value=fill).flatten(2)
    return padded.gather(2, pixels.expand(batch, channels, height * width)).view_as(images)


def cutout(
    images: Tensor,
    indices: Tensor,
    *,
    seed: int,
    epoch: int,
    view: int = 0,
    size: int = 16,
    fill: float = 0.0,
) -> Tensor:
    """Overwrite a square of `size` pixels, centred at a random pixel, with `fill` (DeVries and Taylor 2017).

    `images` (B, C, H, W), uint8 or float; `indices` int64 (B,) on the same device. The square may reach beyond the
    border, so fewer pixels change. Returns a new tensor of the same shape and type.
    """
    height, width = images.shape[2:]
    key = keys(seed, "cutout", indices, epoch, view)
    inside = []
    for number, length in enumerate((height, width)):
        start = integers(fold(key, number), torch.full_like(key, length))[:, None] - size // 2
        place = torch.arange(length, device=images.device)
        inside.append((place >= start) & (place < start + size))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(square, fill)
