from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advbench.data import load
from advbench.errors import UserError


def save(file: Path, colour: tuple[int, int, int] = (1, 2, 3), size: tuple[int, int] = (6, 5)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            for image in range(3):
                save(tmp_path / split / name / f"{image}.png", (number, image, len(split)))
    return tmp_path


def test_train_and_test_folders(tree: Path) -> None:
    (tree / "train/cat/notes.txt").write_text("no image")
    (tree / "train/.hidden").mkdir()
    data = load(f"imagefolder:{tree}", "train")
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.images.shape == (6, 3, 5, 6)
    assert data.images[4, :, 0, 0].tolist() == [1, 1, 5]
    assert load(f"imagefolder:{tree}", "test").images[0, 2, 0, 0] == 4


def test_pixels_are_rows_then_columns(tmp_path: Path) -> None:
    pixels = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    for name in ("a", "b"):
        for number in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = load(f"imagefolder:{tmp_path}", "test")
    assert len(data) == 2
    assert np.array_equal(data.images[0].numpy(), pixels.transpose(2, 0, 1))


def test_class_folders_alone_are_divided_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(10):
            save(tmp_path / "one" / name / f"{number}.png", (number, 0, 0))
            save(tmp_path / "two" / name / f"{number}.png", (number, 0, 0))
    parts = {place: [load(f"imagefolder:{tmp_path / place}", s) for s in ("train", "test")] for place in ("one", "two")}
    train, test = parts["one"]
    assert test.labels.tolist() == [0, 0, 1, 1]
    for label in (0, 1):
        numbers = [*train.images[train.labels == label, 0, 0, 0], *test.images[test.labels == label, 0, 0, 0]]
        assert sorted(map(int, numbers)) == list(range(10))
    assert test.images_sha256 == parts["two"][1].images_sha256


def test_sizes_that_differ_need_resizing(tree: Path) -> None:
    save(tree / "train/dog/9.png", size=(12, 20))
    with pytest.raises(UserError, match=r"9.png is 12x20, .*0.png 6x5: make them one size.*@5"):
        load(f"imagefolder:{tree}", "train")
    for data in (load(f"imagefolder:{tree}@4", "train"), load(f"imagefolder:{tree}", "train", resize=4)):
        assert data.images.shape == (7, 3, 4, 4)
        assert data.name == f"imagefolder:{tree}@4"
    assert data.images[6].unique().tolist() == [1, 2, 3]


def test_resizing_keeps_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    assert torch.equal(
        load(f"imagefolder:{tmp_path}@8", "test").images[0], torch.full((3, 8, 8), 200, dtype=torch.uint8)
    )


def test_grey_and_transparent_images_become_rgb(tree: Path) -> None:
    Image.new("L", (6, 5), 9).save(tree / "train/cat/0.png")
    Image.new("RGBA", (6, 5), (1, 2, 3, 0)).save(tree / "train/cat/1.png")
    data = load(f"imagefolder:{tree}", "train")
    assert data.images[0, :, 0, 0].tolist() == [9, 9, 9]
    assert data.images[1, :, 0, 0].tolist() == [1, 2, 3]


def test_wrong_folders(tree: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a folder: it must hold train/CLASS/\*.png"):
        load(f"imagefolder:{tree}/nowhere", "train")
    with pytest.raises(UserError, match="at least two class folders, not 0"):
        load(f"imagefolder:{tree}/train/cat", "train")
    (tree / "train/cat/0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read .*cat/0.png"):
        load(f"imagefolder:{tree}", "train")
    save(tree / "test/horse/0.png")
    with pytest.raises(UserError, match="lacks: horse"):
        load(f"imagefolder:{tree}", "test")
    (tree / "test").rename(tree / "other")
    with pytest.raises(UserError, match="none of test, val"):
        load(f"imagefolder:{tree}", "test")
    for file in tree.glob("train/*/*"):
        file.unlink()
    with pytest.raises(UserError, match="no images for the train split"):
        load(f"imagefolder:{tree}", "train")
    with pytest.raises(UserError, match="at least 1"):
        load(f"imagefolder:{tree}", "train", resize=0)
    with pytest.raises(UserError, match="unknown setting of imagefolder 'size'"):
        load(f"imagefolder:{tree}", "train", size=3)
