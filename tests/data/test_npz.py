from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advbench.data import load
from advbench.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2])


def save(folder: Path, **changes: Any) -> str:
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS, **changes}
    np.savez(folder / "my.npz", **{name: array for name, array in arrays.items() if array is not None})
    return f"npz:{folder}/my.npz"


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        IMAGES.transpose(0, 3, 1, 2),
        (IMAGES / 255),
        (IMAGES / 255).astype(np.float32),
        (IMAGES / 255).astype(np.float16),
    ],
    ids=["NHWC", "NCHW", "float64", "float32", "float16"],
)
def test_every_form_gives_the_same_bytes(tmp_path: Path, images: np.ndarray[Any, Any]) -> None:
    data = load(save(tmp_path, x_test=images, y_test=LABELS[:, None].astype(np.uint8)), "test")
    assert np.array_equal(data.images.numpy(), IMAGES.transpose(0, 3, 1, 2))
    assert data.labels.tolist() == LABELS.tolist()
    assert (data.num_classes, data.split) == (3, "test")


def test_grey_images_without_a_channel(tmp_path: Path) -> None:
    spec = save(tmp_path, x_train=IMAGES[..., 0], y_train=LABELS + 4)
    assert load(spec, "train").images.shape == (4, 1, 6, 5)
    assert load(spec, "test").num_classes == 7  # counted over both splits
    assert not load(spec, "test").num_classes_known


def test_a_class_map_is_for_the_labels_of_both_splits(tmp_path: Path) -> None:
    """The stored labels 3 and 7 used to make eight classes."""
    y_train, y_test = np.array([3, 7, 3, 7]), np.array([3, 3, 3, 3])
    spec = save(tmp_path, y_train=y_train, y_test=y_test, class_map=np.array([[3, 0], [7, 1], [9, 2]]))
    assert [load(spec, split).num_classes for split in ("train", "test")] == [2, 2]


@pytest.mark.parametrize("names", [("{}_x", "{}_y"), ("{}_images", "{}_labels")])
def test_other_names(tmp_path: Path, names: tuple[str, str]) -> None:
    arrays = {n.format(s): a for s in ("train", "test") for n, a in zip(names, (IMAGES, LABELS), strict=True)}
    np.savez(tmp_path / "my.npz", **arrays, class_names=np.array(["a", "b", "c"]))
    assert load(f"npz:{tmp_path}/my.npz", "train").class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_test": None, "y_test": None},
            "lacks x_test or test_x or test_images or x_adv or x or images; it has x_train, y_train",
        ),
        ({"y_test": None}, "lacks y_test; it has x_test, x_train, y_train"),
        ({"x_test": IMAGES[:3]}, "there are 3 images, but 4 labels"),
        ({"x_test": IMAGES.astype(np.float32)}, r"from 0 to 255, and must lie in \[0, 1\]: divide by 255"),
        ({"x_test": np.full((4, 6, 5, 3), np.nan)}, r"images hold NaN, and must lie in \[0, 1\]"),
        ({"x_test": IMAGES.reshape(4, 90)}, r"\(N, H, W, C\), not \(4, 90\)"),
        ({"x_test": np.zeros((4, 3, 8, 3), np.uint8)}, r"which axis of \(4, 3, 8, 3\) has the channels"),
        ({"x_test": np.zeros((4, 8, 8, 4), np.uint8)}, r"which axis of \(4, 8, 8, 4\) has the channels"),
        ({"y_test": LABELS - 1}, "labels run from -1 to 1"),
        ({"y_test": LABELS / 2}, "labels must be whole numbers or names"),
        ({"y_test": np.eye(4)}, r"one-hot or probabilities: give y.argmax\(1\)"),
        ({"num_classes": np.array([3, 4])}, r"num_classes must be one number, not \(2,\)"),
        ({"num_classes": np.array(2.5)}, "num_classes is .*2.5.*: it must be a whole number from 1"),
        ({"num_classes": np.array(2)}, "labels run from 0 to 2, but must lie in 0 to 1"),
        ({"num_classes": np.array(4), "class_names": np.array(["a", "b"])}, "is 4, but there are 2 class_names"),
        ({"class_map": np.array([0, 1, 2])}, r"class_map must be whole numbers \(M, 2\)"),
        ({"class_map": np.array([[0, 1], [0, 2]])}, "gives one label two classes"),
        ({"class_map": np.array([[0, 1], [1, 1]])}, "labels without a class: 2; there are classes for"),
        ({"layout": np.array("chwn")}, "unknown layout 'chwn'"),
        ({"y_test": np.array([{}] * 4)}, "pickles are never opened"),
        ({"x_test": IMAGES[:0], "y_test": LABELS[:0]}, "no images"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(save(tmp_path, **changes), "test")


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_a_single_split_is_for_testing(tmp_path: Path, names: tuple[str, str]) -> None:
    np.savez(tmp_path / "my.npz", **dict(zip(names, (IMAGES, LABELS), strict=True)))
    assert len(load(f"npz:{tmp_path}/my.npz", "test")) == 4
    with pytest.raises(UserError, match="lacks x_train or train_x or train_images; it has"):
        load(f"npz:{tmp_path}/my.npz", "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_split_alone(tmp_path: Path, split: str) -> None:
    other = {"train": "test", "test": "train"}[split]
    data = load(save(tmp_path, **{f"x_{other}": None, f"y_{other}": None}), split)
    assert (len(data), data.split, data.num_classes) == (4, split, 3)


def test_what_a_file_says_of_its_classes(tmp_path: Path) -> None:
    data = load(save(tmp_path, num_classes=np.array(10)), "test")
    assert (data.num_classes, data.num_classes_known) == (10, True)
    data = load(save(tmp_path, class_map=np.array([[0, 7], [1, 3], [2, 5]]), num_classes=np.array(10)), "test")
    assert data.labels.tolist() == [7, 5, 3, 5]
    data = load(save(tmp_path, y_test=np.array(["b", "a", "c", "a"]), class_names=np.array(["a", "b", "c"])), "test")
    assert data.labels.tolist() == [1, 0, 2, 0]
    assert load(save(tmp_path, y_train=np.zeros(0, np.int64)), "test").num_classes == 3
    with pytest.raises(UserError, match="there are 4 images, but 0 labels"):
        load(save(tmp_path, y_test=np.zeros(0)), "test")


def test_layout_is_told(tmp_path: Path) -> None:
    images = np.zeros((4, 3, 8, 3), np.uint8)
    assert load(save(tmp_path, x_test=images, layout=np.array("nhwc")), "test").shape == (3, 3, 8)
    assert load(save(tmp_path, x_test=images, layout=np.array("nchw")), "test").shape == (3, 8, 3)


def test_examples_of_an_attack(tmp_path: Path) -> None:
    adversarial = (IMAGES.transpose(0, 3, 1, 2) / 255).clip(0.03, 0.97).astype(np.float32)
    more = {name: np.zeros(4, np.int64) for name in ("before", "after", "index")}
    np.savez(tmp_path / "my.npz", x=IMAGES, x_adv=adversarial, y=LABELS, **more)
    data = load(f"npz:{tmp_path}/my.npz", "test")
    assert np.array_equal(data.images.numpy(), adversarial)
    assert data.notes == ("the images are adversarial examples (x_adv)",)


def test_files_that_are_not_npz(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nothing.npz: No such file"):
        load(f"npz:{tmp_path}/nothing.npz", "test")
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(UserError, match="holds a single array"):
        load(f"npz:{tmp_path}/one.npy", "test")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(UserError, match=r"text.npz is not an .npz file"):
        load(f"npz:{tmp_path}/text.npz", "test")
    file = Path(save(tmp_path).removeprefix("npz:"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot read"):
        load(f"npz:{file}", "test")
