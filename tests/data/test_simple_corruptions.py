"""The corruptions that are made here: closed forms, and what must hold for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from advbench.data import load
from advbench.data.corruptions import COMMON
from advbench.data.dataset import Dataset
from advbench.data.simple_corruptions import SIMPLE, check_simple, corrupted_simply
from advbench.errors import UserError


def dataset(images: Tensor) -> Dataset:
    labels = torch.zeros(len(images), dtype=torch.int64)
    return Dataset.whole(images.to(torch.uint8), labels, name="x", split="test", num_classes=2)


def grey(level: int, channels: int = 1, side: int = 64) -> Dataset:
    return dataset(torch.full((2, channels, side, side), level))


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_corrupted_by_itself_and_more_with_severity(name: str, channels: int) -> None:
    assert name in COMMON
    digits = load("digits", "test").images[:6].float() * (255 / 16)
    images = torch.nn.functional.interpolate(digits, size=32, mode="bilinear").expand(-1, channels, -1, -1)
    data, order = dataset(images.round()), [4, 1]
    light, strong = (corrupted_simply(data, name, severity, seed=0) for severity in (1, 5))
    assert light.shape == (6, channels, 32, 32) and light.dtype == torch.float32
    assert light.min() >= 0 and light.max() <= 1 and torch.equal((light * 255).round() / 255, light)
    assert torch.equal(light[order], corrupted_simply(data.subset(order), name, 1, seed=0))
    clean = data.pixels(data.images)
    assert (strong - clean).square().mean() > 1.2 * (light - clean).square().mean() > 0
    again = corrupted_simply(data, name, 1, seed=1)
    assert torch.equal(light, again) == ("noise" not in name)


def test_other_channels_are_refused_and_the_smallest_images_are_corrupted() -> None:
    with pytest.raises(UserError, match=r"x has images of 2 channels: corruptions need 1 or 3"):
        check_simple(grey(0, 2, 8))
    check_simple(grey(0, 3, 8))
    for name in SIMPLE:
        assert corrupted_simply(grey(128, 3, 1), name, 5, seed=0).shape == (2, 3, 1, 1)


def test_noise_has_the_deviations_of_cifar_10_c() -> None:
    half = corrupted_simply(grey(128), "gaussian_noise", 3, seed=0)
    assert float(half.std()) == pytest.approx(0.08, rel=0.05)
    shot = corrupted_simply(grey(128), "shot_noise", 2, seed=0)  # a Poisson number of mean 250 x
    assert float(shot.std()) == pytest.approx((128 / 255 / 250) ** 0.5, rel=0.05)
    impulse = corrupted_simply(grey(128), "impulse_noise", 5, seed=0)
    for extreme in (0, 1):
        assert float((impulse == extreme).double().mean()) == pytest.approx(0.035, abs=0.008)


def test_brightness_is_the_hsv_value_and_contrast_keeps_the_mean() -> None:
    red = torch.tensor([200.0, 100, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    lit = corrupted_simply(dataset(red), "brightness", 2, seed=0)[0, :, 0, 0] * 255
    assert lit.tolist() == [225, 112, 0]  # 200 + 25.5, and the same hue and saturation
    assert (corrupted_simply(grey(0, 3), "brightness", 1, seed=0) * 255).unique().tolist() == [12]
    assert corrupted_simply(grey(250), "brightness", 5, seed=0).unique().tolist() == [1]
    halves = torch.cat([torch.full((1, 1, 4, 2), 50.0), torch.full((1, 1, 4, 2), 150.0)], 3)
    assert (corrupted_simply(dataset(halves), "contrast", 2, seed=0) * 255).unique().tolist() == [75, 125]


def test_blur_and_pixels_are_means() -> None:
    for name in ("defocus_blur", "pixelate", "jpeg_compression"):
        flat = corrupted_simply(grey(128, 3, 32), name, 5, seed=0) * 255
        assert (flat - 128).abs().max() <= 1
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 255
    light = corrupted_simply(dataset(point), "defocus_blur", 1, seed=0)[0, 0]  # a point, softened by 0.4 pixels
    taps = np.exp(-np.array([1, 0, 1]) / (2 * 0.4**2))
    expected = np.zeros((9, 9))
    expected[3:6, 3:6] = np.outer(taps, taps) / taps.sum() ** 2
    assert np.abs(light.numpy() - expected).max() <= 1 / 255
    wide = corrupted_simply(dataset(point), "defocus_blur", 5, seed=0)[0, 0]  # a disk of radius 1.5: 3 x 3 pixels
    assert (wide > 0.1).nonzero().tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]
    edge = torch.zeros(1, 1, 20, 20)
    edge[..., 10:] = 255
    row = corrupted_simply(dataset(edge), "pixelate", 4, seed=0)[0, 0, 0]  # to 15 pixels and back: one is half and half
    assert (row[:9] == 0).all() and (row[11:] == 1).all() and ((row[9:11] - 0.5).abs() < 0.01).all()
