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


@pytest.mark.parametrize("names", [("{}_x", "{}_y"), ("{}_images", "{}_labels")])
def test_other_names(tmp_path: Path, names: tuple[str, str]) -> None:
    arrays = {n.format(s): a for s in ("train", "test") for n, a in zip(names, (IMAGES, LABELS), strict=True)}
    np.savez(tmp_path / "my.npz", **arrays, class_names=np.array(["a", "b", "c"]))
    assert load(f"npz:{tmp_path}/my.npz", "train").class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "lacks x_test or test_x or test_images; it has x_train, y_test, y_train"),
        ({"y_train": None}, "lacks y_train"),
        ({"x_test": IMAGES[:3]}, "has 3 test images, but 4 labels"),
        ({"x_test": IMAGES.astype(np.int32)}, "must be uint8, or floats in"),
        ({"x_test": IMAGES.astype(np.float32)}, r"float32 from 0 to 255, not in \[0, 1\]"),
        ({"x_test": np.full((4, 6, 5, 3), np.nan)}, r"from nan to nan, not in \[0, 1\]"),
        ({"x_test": IMAGES / 255 * 0.9}, "not multiples of 1/255"),
        ({"x_test": IMAGES.reshape(4, 90)}, r"with 1 or 3 channels, not \(4, 90\)"),
        ({"x_test": np.zeros((4, 3, 8, 3), np.uint8)}, r"not \(4, 3, 8, 3\)"),
        ({"x_test": np.zeros((4, 8, 8, 4), np.uint8)}, r"not \(4, 8, 8, 4\)"),
        ({"y_test": LABELS - 1}, "whole numbers from 0"),
        ({"y_test": LABELS / 2}, "whole numbers from 0"),
        ({"y_test": np.eye(4)}, "whole numbers from 0"),
        ({"y_test": np.array([{}] * 4)}, "pickles are never opened"),
        ({"x_test": IMAGES[:0], "y_test": LABELS[:0]}, "no images"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(save(tmp_path, **changes), "test")


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
