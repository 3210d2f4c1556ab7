import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.data.dataset import Dataset, fingerprint, split_validation
from advbench.errors import UserError


def make(n: int = 10, scale: float = 255.0) -> Dataset:
    images = torch.arange(n * 12, dtype=torch.uint8).view(n, 3, 2, 2)
    return Dataset.whole(images, torch.arange(n) % 3, name="toy", split="test", num_classes=3, scale=scale)


def test_fingerprint_is_the_stated_hash() -> None:
    data = make(2)
    stated = b"2,3,2,2;" + bytes(range(24)) + bytes([0] * 8) + bytes([1] + [0] * 7)
    assert data.images_sha256 == hashlib.sha256(stated).hexdigest()


def test_fingerprint_sees_pixels_labels_shape_and_order() -> None:
    data = make()
    changed = data.images.clone()
    changed[3, 1, 0, 1] += 1
    others = {
        fingerprint(changed, data.labels),
        fingerprint(data.images, data.labels.flip(0)),
        fingerprint(data.images.view(10, 3, 4, 1), data.labels),
        data.subset(torch.arange(9, -1, -1)).images_sha256,
        data.subset(range(9)).images_sha256,
    }
    assert len(others) == 5
    assert data.images_sha256 not in others
    assert data.subset(range(10)).images_sha256 == data.images_sha256


def test_fingerprint_is_of_values_not_of_memory_layout() -> None:
    data = make()
    strided = data.images.to(memory_format=torch.channels_last)
    assert fingerprint(strided, data.labels) == data.images_sha256


def test_equal_bytes_on_another_scale_are_other_images() -> None:
    for top in (0, 16, 17, 255):
        images, labels = torch.full((2, 1, 2, 2), top, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
        parts: dict[str, Any] = {"name": "x", "split": "test", "num_classes": 2}
        hashes = [Dataset.whole(images, labels, scale=scale, **parts).images_sha256 for scale in (8, 16, 255, 256, 1e9)]
        assert len(set(hashes)) == 5
        usual = 16 if top <= 16 else 255  # what digits and all others are named by: the hash of their stored values
        assert hashes[(8, 16, 255).index(usual)] == fingerprint(images, labels)


def test_subset_keeps_the_place_in_the_split() -> None:
    part = make().subset([7, 2, 5]).subset(torch.tensor([2, 0]))
    assert part.indices.tolist() == [5, 7]
    assert part.labels.tolist() == [5 % 3, 7 % 3]
    assert part.images[0, 0, 0, 0] == 60


@pytest.mark.parametrize("row", [10, -1])
def test_subset_outside(row: int) -> None:
    with pytest.raises(UserError, match=rf"no image {row}: choose from 0 to 9"):
        make().subset([0, row])


@pytest.mark.parametrize("scale", [255.0, 16.0])
def test_batch_divides_exactly(scale: float) -> None:
    data = make(scale=scale)
    x, y = data.batch(torch.tensor([4, 1]))
    assert x.dtype == torch.float32
    assert y.tolist() == [1, 1]
    assert torch.equal(x, data.images[[4, 1]].float().div(scale))
    assert data.batch(slice(0, 2))[0].shape == (2, 3, 2, 2)


def test_all_bytes_are_as_torchvision_scales_them() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(make().pixels(values), values.float().div(255))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "must be uint8 or float32"),
        (torch.full((2, 3, 2, 2), 1.5), torch.zeros(2, dtype=torch.int64), "floats from 1.5 to 1.5"),
        (torch.full((2, 3, 2, 2), -0.5), torch.zeros(2, dtype=torch.int64), "must lie in .0, 1.: normalisation"),
        (torch.full((2, 3, 2, 2), 5.0), torch.zeros(2, dtype=torch.int64), "divide by 255"),
        (torch.tensor([0.5, torch.nan])[:, None, None, None], torch.zeros(2, dtype=torch.int64), "images hold NaN"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "must be uint8"),
        (torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.zeros(2), "labels must be int64"),
        (torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "must be int64"),
        (torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 5]), "must lie in 0 to 2"),
        (torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([-1, 0]), "must lie in 0 to 2"),
        (torch.zeros(0, 3, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "no images"),
    ],
)
def test_what_does_not_fit_is_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset.whole(images, labels, name="toy", split="test", num_classes=3)


def test_floats_are_kept_as_they_are() -> None:
    images = torch.rand(4, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 2])
    data = Dataset.whole(images, labels, name="toy", split="test", num_classes=3)
    assert (data.scale, data.levels, make().levels, make(scale=16.0).levels) == (1, 255, 255, 16)
    stated = b"4,1,3,2;float32;" + images.numpy().astype("<f4").tobytes() + labels.numpy().astype("<i8").tobytes()
    assert data.images_sha256 == hashlib.sha256(stated).hexdigest()
    assert data.images_sha256 == data.to("cpu").subset(range(4)).images_sha256
    assert data.subset([3, 1]).images_sha256 == data.subset([0, 3, 2, 1]).subset([1, 3]).images_sha256
    assert data.images_sha256 != data.subset([3, 2, 1, 0]).images_sha256


def test_minus_zero_is_zero() -> None:
    labels = torch.zeros(1, dtype=torch.int64)
    assert fingerprint(torch.full((1, 1, 1, 2), -0.0), labels) == fingerprint(torch.zeros(1, 1, 1, 2), labels)


def test_a_batch_of_floats_is_a_copy() -> None:
    data = Dataset.whole(torch.full((2, 1, 1, 1), 0.25), torch.tensor([0, 1]), name="toy", split="test", num_classes=2)
    x, _ = data.batch(slice(None))
    x.zero_()  # as a model that changes its input in place does
    assert data.batch(slice(None))[0].tolist() == [[[[0.25]]]] * 2


def test_a_model_may_have_more_classes_than_labels_that_nobody_counted() -> None:
    data = replace(make(), num_classes_known=False)
    wider = data.with_classes(5)
    assert (wider.num_classes, wider.num_classes_known, wider.images_sha256) == (5, True, data.images_sha256)
    assert make().with_classes(3).num_classes == 3
    with pytest.raises(UserError, match="the model has 2 classes, toy has at least 3"):
        data.with_classes(2)
    with pytest.raises(UserError, match="the model has 5 classes, toy has 3"):
        make().with_classes(5)


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 5))
def test_validation_split_is_a_partition(n: int, fraction: float, seed: int) -> None:
    data = make(n)
    held = round(fraction * n)
    if held in (0, n):
        with pytest.raises(UserError, match="choose another share between 0 and 1"):
            split_validation(data, fraction, seed)
        return
    train, held_out = split_validation(data, fraction, seed)
    assert len(held_out) == held
    assert sorted(torch.cat([train.indices, held_out.indices]).tolist()) == list(range(n))
    assert train.indices.tolist() == sorted(train.indices.tolist())
    assert torch.equal(held_out.images, data.images[held_out.indices])


def test_validation_split_is_fixed_by_the_seed() -> None:
    data = make(1000)
    first, again, other = (split_validation(data, 0.1, seed)[1].indices for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # An image is drawn by its index, so that leaving others out does not move it.
    kept = data.subset(range(200, 1000))
    assert len(set(split_validation(kept, 0.1, 0)[1].indices.tolist()) & set(first.tolist())) > 70
    # As it has always been: a change here would put training images of stored runs into validation.
    assert first[:8].tolist() == [13, 20, 22, 49, 57, 58, 68, 71]
