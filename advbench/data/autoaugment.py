"""AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019, arXiv:1805.09501, table 7), without a loop over images.

An operation is of one of three kinds: a move (a nearest-neighbour affine map), a curve (a table of 256 values for
each channel) or a blend with a degenerate image. Every image passes through all three kinds, and at most one changes
it. So images need not be sorted by operation, and the host never waits for the device.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.errors import UserError
from advbench.rng import fold, integers, keys, uniform

OPERATIONS = (
    "identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate",
    "brightness", "contrast", "posterize", "solarize", "invert", "autocontrast", "equalize",
    "color", "sharpness",
)  # fmt: skip
_CODE = {name: code for code, name in enumerate(OPERATIONS)}

# Each sub-policy has two steps: operation, probability, level 0 to 9 (unused by invert, autocontrast and equalize).
POLICY = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate-x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear-y", 0.5, 8), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear-y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate-x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate-y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate-y", 0.9, 9), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate-y", 0.7, 9), ("autocontrast", 0.9, 0)),
)


def autoaugment(images: Tensor, indices: Tensor, *, seed: int, epoch: int, view: int = 0) -> Tensor:
    """Apply one of the 25 sub-policies, drawn by index, to each image, each of its steps with its probability.

    `images` uint8 (B, C, H, W) with values from 0 to 255 and 1 or 3 channels; `indices` int64 (B,) on the same device.
    Returns uint8 of the same shape. Raises UserError for images of another type or shape.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"autoaugment needs uint8 images (N, C, H, W) of 1 or 3 channels, not {tuple(images.shape)}")
    codes, chances, levels = _policy(images.device)
    key = keys(seed, "autoaugment", indices, epoch, view)
    chosen = integers(fold(key, 0), torch.full_like(key, len(POLICY)))
    applied = uniform(fold(key, 1), (2,)) < chances[chosen]
    negative = integers(fold(key, 2), torch.full_like(key, 4))
    for step in (0, 1):
        code = codes[chosen, step] * applied[:, step]
        images = operate(images, code, levels[chosen, step], (negative >> step) % 2 == 1)
    return images


@cache
def _policy(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """POLICY as codes, probabilities and levels (25, 2), copied to the device once."""
    return (
        torch.tensor([[_CODE[name] for name, _, _ in pair] for pair in POLICY], device=device),
        torch.tensor([[chance for _, chance, _ in pair] for pair in POLICY], device=device),
        torch.tensor([[level for _, _, level in pair] for pair in POLICY], device=device),
    )


def operate(images: Tensor, code: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    """Apply one operation to each image: uint8 (B, C, H, W); `code` and `level` int64 (B,), `negative` bool (B,).

    `code` is an index into OPERATIONS; `negative` reverses the operations that have a direction.
    """
    strength = level / 9 * torch.where(negative, -1.0, 1.0)
    moved = _move(images, code, strength)
    curved = _curve(moved, code, level, 1 + 0.9 * strength)
    return _blend(curved, code, 1 + 0.9 * strength)


def _is(code: Tensor, *names: str) -> Tensor:
    """Which images get one of the operations `names`: bool (B,)."""
    return torch.stack([code == _CODE[name] for name in names]).any(0)


def _move(images: Tensor, code: Tensor, strength: Tensor) -> Tensor:
    """Shears up to 0.3 about the top left corner, shifts up to 150/331 of the side, rotations up to 30 degrees."""
    batch, channels, height, width = images.shape
    y = torch.arange(height, device=images.device)[None, :, None] + 0.5 - height / 2
    x = torch.arange(width, device=images.device)[None, None, :] + 0.5 - width / 2

    def amount(name: str, at_most: float) -> Tensor:
        return torch.where(_is(code, name), strength * at_most, 0.0)[:, None, None]

    turn = torch.deg2rad(amount("rotate", 30.0))
    from_x = x * turn.cos() - y * turn.sin() + amount("shear-x", 0.3) * (y + height / 2)
    from_y = y * turn.cos() + x * turn.sin() + amount("shear-y", 0.3) * (x + width / 2)
    from_x = from_x - amount("translate-x", 150 / 331 * width).trunc()
    from_y = from_y - amount("translate-y", 150 / 331 * height).trunc()
    column = (from_x + width / 2 - 0.5).round().long()
    row = (from_y + height / 2 - 0.5).round().long()
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    taken = images.flatten(2).gather(2, place.view(batch, 1, -1).expand(batch, channels, -1))
    return taken.view_as(images).masked_fill(outside[:, None], 0)


def _curve(images: Tensor, code: Tensor, level: Tensor, factor: Tensor) -> Tensor:
    """The operations that map each value of a channel to another value."""
    value = torch.arange(256.0, device=images.device).expand(*images.shape[:2], 256)
    each = (slice(None), None, None)
    factor, level = factor[each], level[each]
    bright = factor * value
    contrast = factor * value + (1 - factor) * _grey(images).mean((1, 2, 3))[each]
    dropped = 2 ** (level * 4 / 9).round()  # keeps 8 to 4 bits
    posterized = value - value % dropped
    solarized = torch.where(value >= 255 - level * 255 / 9, 255 - value, value)
    low, high = images.flatten(2).amin(2)[..., None].float(), images.flatten(2).amax(2)[..., None].float()
    stretched = torch.where(high > low, (value - low) * (255 / (high - low)), value)
    curve = value
    for name, candidate in (
        ("brightness", bright),
        ("contrast", contrast),
        ("posterize", posterized),
        ("solarize", solarized),
        ("invert", 255 - value),
        ("autocontrast", stretched),
        ("equalize", _equalizing(images)),
    ):
        curve = torch.where(_is(code, name)[each], candidate, curve)
    table = curve.clamp(0, 255).to(torch.uint8)
    return table.gather(2, images.flatten(2).long()).view_as(images)


def _equalizing(images: Tensor) -> Tensor:
    """The curves (B, C, 256) that flatten each channel's histogram, in integer arithmetic like PIL's."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    brightest = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - brightest) // 255
    below = F.pad(counts.cumsum(2), (1, -1))
    curve = (below + step // 2) // step.clamp_min(1)
    return torch.where(step > 0, curve, torch.arange(256, device=images.device)).float()


def _grey(images: Tensor) -> Tensor:
    """The grey image (B, 1, H, W): whole numbers in float32."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, 1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()


def _blend(images: Tensor, code: Tensor, factor: Tensor) -> Tensor:
    """Blends towards or away from the grey image (color) or a smoothed one (sharpness, which keeps the border)."""
    exact = images.float()
    across = exact[..., :-2] + exact[..., 1:-1] + exact[..., 2:]
    around = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    smooth = exact.clone()
    smooth[..., 1:-1, 1:-1] = ((around + 4 * exact[..., 1:-1, 1:-1]) / 13).round()
    coloured = _is(code, "color")[:, None, None, None] & (images.shape[1] == 3)  # a grey image stays unchanged
    other = torch.where(coloured, _grey(images), smooth)
    factor = factor[:, None, None, None]
    mixed = (factor * exact + (1 - factor) * other).clamp(0, 255).to(torch.uint8)
    return torch.where(coloured | _is(code, "sharpness")[:, None, None, None], mixed, images)
