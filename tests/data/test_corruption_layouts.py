"""Published corrupted images: files in the formats of CIFAR-10-C and ImageNet-C, and what is read of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from advbench.data import load
from advbench.data.corruptions import COMMON, SEVERITIES, corrupted, source_of
from advbench.data.dataset import Dataset
from advbench.errors import UserError

GROUPS = {
    "noise": COMMON[:3], "blur": COMMON[3:7], "weather": COMMON[7:11], "digital": COMMON[11:],
}  # fmt: skip
NAMES = ("ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002")
CLASSES = ("n01440764", "n01443537", "n01484850")


def cifar(name: str, classes: int) -> Dataset:
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    return Dataset.whole(images, torch.tensor([2, 0, 1]), name=name, split="test", num_classes=classes)


def write_arrays(folder: Path, labels: tuple[int, ...] = (2, 0, 1)) -> None:
    """Images of one grey level: severity after severity, one more from image to image and from file to file."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "labels.npy", np.tile(labels, len(SEVERITIES)))
    for number, name in enumerate(COMMON):
        levels = np.arange(5 * len(labels), dtype=np.uint8) + number
        np.save(folder / f"{name}.npy", np.broadcast_to(levels[:, None, None, None], (len(levels), 32, 32, 3)))


def colour(number: int, severity: int, label: int, image: int) -> tuple[int, int, int]:
    return 10 * number, 40 * severity, 20 * label + 60 * image


def write_jpeg(file: Path, at: tuple[int, int, int], side: int = 32) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), at).save(file, "JPEG", quality=100, subsampling=0)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Three classes of two images, named as ImageNet names them."""
    for label, name in enumerate(CLASSES):
        for image in NAMES:
            write_jpeg(tmp_path / "val" / name / f"{image}.JPEG", (label, label, label))
    return tmp_path / "val"


def write_folders(folder: Path, *, grouped: bool, side: int = 32) -> None:
    for group, corruptions in GROUPS.items():
        for corruption in corruptions:
            for severity in SEVERITIES:
                place = folder / (group if grouped else "") / corruption / str(severity)
                for label, name in enumerate(CLASSES):
                    for number, image in enumerate(NAMES):
                        at = colour(COMMON.index(corruption), severity, label, number)
                        write_jpeg(place / name / f"{image}.JPEG", at, side)


def expected(corruption: str, severity: int) -> Tensor:
    rows = [(label, number) for number in range(len(NAMES)) for label in range(len(CLASSES))]
    return torch.tensor([colour(COMMON.index(corruption), severity, *row) for row in rows])


@pytest.mark.parametrize(
    ("source", "name", "classes"), [("CIFAR-10-C", "cifar10", 10), ("CIFAR-100-C", "cifar100", 100)]
)
def test_arrays_belong_to_the_test_split_of_their_dataset(cache: Path, source: str, name: str, classes: int) -> None:
    write_arrays(cache / source)
    data = cifar(name, classes)
    assert source_of(data) == source
    for severity in SEVERITIES:
        found = corrupted(data.subset([2, 0]), "fog", severity, source=source, seed=0)
        first = 3 * (severity - 1) + COMMON.index("fog")
        assert torch.equal(found[:, 1, 5, 6] * 255, torch.tensor([first + 2.0, first]))
    for other in ("cifar10", "cifar100", "svhn"):
        if other != name:
            with pytest.raises(UserError, match="is not for the images of"):
                source_of(cifar(other, classes), source)


def test_arrays_that_do_not_fit_are_refused(cache: Path) -> None:
    folder, data = cache / "CIFAR-10-C", cifar("cifar10", 10)
    write_arrays(folder, labels=(2, 0, 3))
    with pytest.raises(UserError, match="other labels"):
        corrupted(data, "fog", 1, source="CIFAR-10-C", seed=0)
    write_arrays(folder)
    np.save(folder / "fog.npy", np.zeros((5, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="holds 5 images"):
        corrupted(data, "fog", 1, source="CIFAR-10-C", seed=0)
    (folder / "fog.npy").unlink()
    with pytest.raises(UserError, match="CIFAR-10-C is not whole in"):
        source_of(data, "CIFAR-10-C")


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("source", ["ImageNet-C", "Tiny-ImageNet-C"])
def test_folders_match_by_class_and_file_name(cache: Path, clean: Path, source: str, grouped: bool) -> None:
    write_folders(cache / source, grouped=grouped)
    data = load(f"imagefolder:{clean}", "test")
    assert source_of(data) == source
    for corruption, severity in (("gaussian_noise", 1), ("jpeg_compression", 5), ("snow", 3)):
        found = corrupted(data, corruption, severity, source=source, seed=0)
        assert found.shape == (6, 3, 32, 32) and found.dtype == torch.float32
        assert (found[:, :, 7, 9] * 255 - expected(corruption, severity)).abs().max() <= 2  # of JPEG
        some = corrupted(data.subset([4, 1]), corruption, severity, source=source, seed=0)
        assert torch.equal(some, found[[4, 1]])


def test_folders_of_another_size_are_made_that_of_the_images(cache: Path, clean: Path) -> None:
    write_folders(cache / "ImageNet-C", grouped=False, side=40)
    data = load(f"imagefolder:{clean}@30", "test")
    found = corrupted(data, "frost", 2, source=source_of(data), seed=0)
    assert found.shape == (6, 3, 30, 30)
    assert (found[:, :, 7, 9] * 255 - expected("frost", 2)).abs().max() <= 2


def test_other_images_have_no_counterparts(cache: Path, clean: Path) -> None:
    write_folders(cache / "ImageNet-C", grouped=True)
    data = load(f"imagefolder:{clean}", "test")
    write_jpeg(clean / CLASSES[0] / "another.JPEG", (0, 0, 0))
    for changed in (
        load(f"imagefolder:{clean}", "test"),
        cifar(f"imagefolder:{clean}", 3),
        cifar("imagefolder:nowhere", 3),
    ):
        with pytest.raises(UserError, match=r"ImageNet-C is not whole in .*, or is not for|is not a folder"):
            source_of(changed, "ImageNet-C")
    (clean / CLASSES[0] / "another.JPEG").unlink()
    file = cache / "ImageNet-C/weather/fog/4" / CLASSES[1] / f"{NAMES[1]}.JPEG"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"cannot read .*fog/4/{CLASSES[1]}/{NAMES[1]}"):
        corrupted(data, "fog", 4, source="ImageNet-C", seed=0)
    file.unlink()
    with pytest.raises(UserError, match=rf"fog/4 lacks the image {CLASSES[1]}/{NAMES[1]}"):
        corrupted(data, "fog", 4, source="ImageNet-C", seed=0)
