"""One image file as RGB bytes, whatever it stores: bits, floats, palettes, transparency, orientation."""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from advbench.errors import UserError, one_line

DEEP = "stored in 16 bits, rounded to 8"
FLOAT = "stored as floats in [0, 1], rounded to 8 bits"
TRANSPARENT = "partly transparent: their colours are used as if they were opaque"
FRAMES = "with several frames, of which the first is used"
_NEEDS = {
    ".avif": "Pillow cannot open it here: pip install -U pillow, or convert it to PNG",
    ".heic": "Pillow needs a plug-in for it: pip install pillow-heif, or convert it to PNG",
    ".heif": "Pillow needs a plug-in for it: pip install pillow-heif, or convert it to PNG",
}


def read(file: Path, size: tuple[int, int] | None) -> tuple[Tensor, set[str]]:
    """The image in `file`, uint8 (3, H, W), turned as its EXIF data say, and which of the remarks above hold for it.

    With `size` (height, width) it is scaled to cover that size, and its middle is cropped. Raises UserError, without
    the name of the file, if it cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix in (".heic", ".heif"):
        _add_heif()
    try:
        if file.stat().st_size == 0:
            raise UserError("it is empty")
        with Image.open(file) as opened:
            picture, remarks = _as_rgb(opened)
        pixels = np.array(picture if size is None else _fitted(picture, size))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), remarks
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(_NEEDS.get(suffix, "no image that Pillow knows, or damaged")) from error
    except Exception as error:  # decoders raise many kinds of error
        raise UserError(f"{type(error).__name__}: {one_line(error)}") from error


def _as_rgb(opened: Image.Image) -> tuple[Image.Image, set[str]]:
    remarks = {FRAMES} if getattr(opened, "is_animated", False) else set()
    deep = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM"))
    picture = ImageOps.exif_transpose(opened)
    if deep or picture.mode in ("I", "F"):
        values = np.asarray(picture).astype(np.float64) / (65535 if deep else 1)
        low, high = values.min(), values.max()  # NaN where one is NaN
        if not (deep or (picture.mode == "F" and 0 <= low <= high <= 1)):
            kind = "floats" if picture.mode == "F" else "32-bit integers"
            raise UserError(f"its values are {kind} from {low:g} to {high:g}: write 8 or 16 bits, or floats in [0, 1]")
        picture = Image.fromarray(np.rint(255 * values).astype(np.uint8))
        remarks.add(DEEP if deep else FLOAT)
    elif picture.getbands()[-1] in "Aa" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if np.asarray(picture)[..., 3].min() < 255:
            remarks.add(TRANSPARENT)
    return picture.convert("RGB"), remarks


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    ratio = max(size[0] / picture.height, size[1] / picture.width)
    height, width = max(size[0], round(picture.height * ratio)), max(size[1], round(picture.width * ratio))
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return picture.crop((left, top, left + size[1], top + size[0]))


@cache
def _add_heif() -> None:
    """Let Pillow open HEIC files, if the plug-in is installed."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
