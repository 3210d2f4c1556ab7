"""Random crops, flips and cut-outs, drawn for each sample on its device.

What is drawn for a sample depends on (seed, epoch, view, the sample's index in the split) alone, so that neither
the batch it comes in nor the device changes it. `view` numbers the copies of a method that wants several.
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
    """Shift each image by up to `pad` pixels each way, `fill` coming in, and mirror half of them (He et al. 2016).

    `images` (B, C, H, W), uint8 or float; `indices` int64 (B,) on the same device. Same as padding by `pad`
    and cutting a random H x W window. Returns a new tensor of the same shape and type.
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
    """Overwrite a square of `size` pixels, centred anywhere in the image, by `fill` (DeVries and Taylor 2017).

    `images` (B, C, H, W), uint8 or float; `indices` int64 (B,) on the same device. The square may reach over the
    border, so that less of it is seen. Returns a new tensor.
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
