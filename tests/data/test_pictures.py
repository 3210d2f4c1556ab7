"""Image files of every kind as RGB bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from advbench.data import load, pictures
from advbench.errors import UserError

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
SCALED = np.rint(RAMP / 65535 * 255).astype(np.uint8)


def read(file: Path) -> tuple[np.ndarray[Any, Any], set[str]]:
    image, remarks = pictures.read(file, None)
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.is_contiguous()
    return image.permute(1, 2, 0).numpy(), remarks


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        file.write_bytes(b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(file)
    found, remarks = read(file)
    assert np.array_equal(found, np.repeat(SCALED[..., None], 3, 2)) and remarks == {pictures.DEEP}


def test_floats_in_0_to_1_are_scaled_and_others_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(file)
    found, remarks = read(file)
    assert np.array_equal(found, np.repeat(SCALED[..., None], 3, 2)) and remarks == {pictures.FLOAT}
    for values, words in (
        (GREY.astype(np.float32), "floats from 0 to 252: write 8 or 16 bits, or floats"),
        (GREY.astype(np.float32) / 252 - 0.5, "floats from -0.5 to 0.5"),
        (np.full((8, 8), np.nan, np.float32), "floats from nan to nan"),
        (GREY.astype(np.int32), "32-bit integers from 0 to 252"),
    ):
        Image.fromarray(values).save(file)
        with pytest.raises(UserError, match=words):
            read(file)


def test_grey_palette_and_cmyk(tmp_path: Path) -> None:
    file, grey = tmp_path / "a.png", np.repeat(GREY[..., None], 3, 2)
    Image.fromarray(GREY).save(file)
    assert np.array_equal(read(file)[0], grey)
    Image.fromarray(GREY >= 128).save(file)
    assert np.array_equal(read(file)[0], 255 * (grey >= 128))
    palette = Image.fromarray(GREY // 4)
    palette.putpalette(COLOUR.tobytes())
    palette.save(file)
    assert np.array_equal(read(file)[0].reshape(64, 3), COLOUR.reshape(64, 3)) and not read(file)[1]
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    cmyk.save(tmp_path / "a.tif")
    assert np.array_equal(read(tmp_path / "a.tif")[0], np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("opaque", [True, False])
def test_transparency_is_dropped_and_said(tmp_path: Path, opaque: bool) -> None:
    alpha = np.full((8, 8, 1), 255, np.uint8)
    alpha[2:, 3] = 255 if opaque else 0
    remarks = set() if opaque else {pictures.TRANSPARENT}
    Image.fromarray(np.concatenate([COLOUR, alpha], 2)).save(tmp_path / "rgba.png")
    assert np.array_equal(read(tmp_path / "rgba.png")[0], COLOUR) and read(tmp_path / "rgba.png")[1] == remarks
    Image.fromarray(np.concatenate([GREY[..., None], alpha], 2)).save(tmp_path / "la.png")
    assert np.array_equal(read(tmp_path / "la.png")[0][..., 1], GREY) and read(tmp_path / "la.png")[1] == remarks
    palette = Image.fromarray(GREY // 4)
    palette.putpalette(COLOUR.tobytes())
    palette.save(tmp_path / "p.png", transparency=200 if opaque else 5)
    assert np.array_equal(read(tmp_path / "p.png")[0].reshape(64, 3), COLOUR.reshape(64, 3))
    assert read(tmp_path / "p.png")[1] == remarks


def test_images_are_turned_as_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(COLOUR[:5]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png")[0], np.rot90(COLOUR[:5], -1))


def test_the_first_of_several_frames(tmp_path: Path) -> None:
    first, second = Image.fromarray(GREY).convert("RGB"), Image.fromarray(255 - GREY).convert("RGB")
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    found, remarks = read(tmp_path / "a.tif")
    assert np.array_equal(found[..., 0], GREY) and remarks == {pictures.FRAMES}


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".JPEG", ".tga", ".Png", ".webp", ".avif"])
def test_images_under_every_suffix(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not ("avif" in features.modules and features.check("avif")):
        pytest.skip("this Pillow has no AVIF")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(COLOUR).save(tmp_path / name / f"0{suffix}")
    data = load(f"imagefolder:{tmp_path}", "test")
    assert data.labels.tolist() == [0, 1]
    if suffix in (".tga", ".Png"):
        assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), COLOUR)


def test_too_many_pixels_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match=r"DecompressionBombError: .*64 pixels"):
        read(tmp_path / "a.png")


def test_remarks_are_counted_in_the_notes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(RAMP).save(tmp_path / name / "0.png")
    assert load(f"imagefolder:{tmp_path}", "test").notes[1:] == (f"2 images {pictures.DEEP}",)
