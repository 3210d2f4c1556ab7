"""Image folders: which folders are splits and classes, which files are images, and what is said of the rest."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.data.folder_checks import check_held_back, check_names
from advbench.data.folders import Place, listing
from advbench.errors import UserError
from advbench.registry import plain_dataset, training_dataset


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


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for number in range(10):
            save(tmp_path / "flat" / name / f"{number}.png", (number, 0, 0))
    return tmp_path / "flat"


def folder(path: Path, split: str = "test", how: str = "") -> Dataset:
    return load(f"imagefolder:{path}{how}", split)


def refused(path: Path, words: str, split: str = "test", how: str = "") -> None:
    with pytest.raises(UserError, match=words) as raised:
        folder(path, split, how)
    assert "\n" not in str(raised.value)


def test_train_and_test_folders(tree: Path) -> None:
    data = folder(tree, "train")
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]  # in turn: the first images are of all classes
    assert data.images.shape == (6, 3, 5, 6)
    assert data.images[:, :, 0, 0].tolist() == [[label, image, 5] for image in range(3) for label in (0, 1)]
    assert folder(tree).images[0, 2, 0, 0] == 4
    assert data.notes == ("6 images, by class 0 = cat (3), 1 = dog (3)",)


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("TRAIN", "VAL"), ("training", "Validation"), ("train", "valid")]
)
def test_split_names_in_any_case(tree: Path, train: str, test: str) -> None:
    (tree / "train").rename(tree / "x")
    (tree / "x").rename(tree / train)
    (tree / "test").rename(tree / "y")
    (tree / "y").rename(tree / test)
    for split, third in (("train", 5), ("test", 4)):
        data = folder(tree, split)
        assert data.class_names == ("cat", "dog") and len(data) == 6
        assert data.images[:, 2, 0, 0].unique().tolist() == [third]


def test_test_comes_before_val_and_other_folders_are_named(tree: Path) -> None:
    shutil.copytree(tree / "train", tree / "val")
    (tree / "annotations").mkdir()
    data = folder(tree)
    assert data.images[0, 2, 0, 0] == 4
    assert data.notes[1:] == ("folders that are not used: annotations, val",)
    shutil.rmtree(tree / "test")
    (tree / "test").mkdir()  # without class folders it is no split
    assert folder(tree).images[0, 2, 0, 0] == 5


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "train"):
        save(tmp_path / name / "0.png")
    data = folder(tmp_path)
    assert data.class_names == ("car", "train") and data.labels.tolist() == [0, 1]


def test_one_split_alone(tree: Path) -> None:
    shutil.rmtree(tree / "train")
    assert len(folder(tree)) == 6
    refused(
        tree, "has test, but none of train, training with class folders; imagefolder:.*/test is test alone", "train"
    )
    (tree / "test").rename(tree / "train")
    refused(tree, "has train, but none of test, val")
    assert len(folder(tree / "train")) == 6


@pytest.mark.parametrize("deep", ["", "morning"])
def test_hidden_files_and_folders_are_no_images(tree: Path, deep: str) -> None:
    for place in (tree, tree / "train", tree / "test", tree / "test" / "cat" / deep):
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".hidden"):
            save(place / name / "0-checkpoint.png")
        save(place / "._0.png")
        (place / "Thumbs.db").write_bytes(b"x")
        (place / ".DS_Store").write_bytes(b"x")
    (tree / "test/cat/labels.txt").write_text("x")
    (tree / "test/cat/README").write_text("x")
    data = folder(tree)
    assert len(data) == 6 and data.class_names == ("cat", "dog")
    assert data.notes[1:] == ("skipped: 1 *.txt, 1 files without a suffix, 7 hidden files or folders",)


def test_images_outside_of_the_class_folders_are_said(flat: Path) -> None:
    save(flat / "stray.png")
    data = folder(flat)
    assert len(data) == 20 and data.notes[1:] == (f"1 image of {flat} outside of its class folders: not used",)


def test_pixels_are_rows_then_columns(tmp_path: Path) -> None:
    pixels = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    data = folder(tmp_path)
    assert len(data) == 2
    assert np.array_equal(data.images[0].numpy(), pixels.transpose(2, 0, 1))


def test_class_folders_alone_are_a_test_split(flat: Path) -> None:
    data = folder(flat)
    assert len(data) == 20 and data.labels.tolist() == [0, 1] * 10
    assert data.name == f"imagefolder:{flat}" and not data.num_classes_known
    refused(flat, f"has no train folder: train on imagefolder:{flat}@fifth", "train")


def test_a_fifth_is_held_back_by_name(flat: Path, tmp_path: Path) -> None:
    shutil.copytree(flat, tmp_path / "copy")
    train, test = (folder(flat, split, "@fifth") for split in ("train", "test"))
    assert 0 < len(test) < len(train) and test.name == train.name == f"imagefolder:{flat}@fifth"
    for label in (0, 1):
        numbers = [*train.images[train.labels == label, 0, 0, 0], *test.images[test.labels == label, 0, 0, 0]]
        assert sorted(map(int, numbers)) == list(range(10))
    assert test.images_sha256 == folder(tmp_path / "copy", "test", "@fifth").images_sha256
    assert test.notes[1] == "about a fifth, each image by the hash of its name, is held back as the test split"


def test_images_that_come_later_do_not_make_training_images_test_images(tmp_path: Path) -> None:
    """Once a fifth by rank was held back: a class that grew took its new test images from those trained on."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(100):
            (tmp_path / name / f"{number}.png").touch()
    place = Place(tmp_path, None, fifth=True)
    train, test = (set(listing(place, split).images) for split in ("train", "test"))
    assert 20 <= len(test) <= 60 and len(train) + len(test) == 200 and not train & test
    for number in range(100, 200):
        (tmp_path / "a" / f"{number}.png").touch()
    (tmp_path / "b/0.png").unlink()
    assert not train & set(listing(place, "test").images)


def test_a_training_holds_images_back(flat: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(tree / "flat", ignore_errors=True)
    save(tmp_path / "one/a/0.png")
    save(tmp_path / "one/b/0.png")
    one = f"imagefolder:{tmp_path / 'one'}"
    assert training_dataset(one) == f"{plain_dataset(one)}@fifth"
    assert training_dataset(f"{one}/@8x9") == f"{plain_dataset(one)}@8x9@fifth"
    assert training_dataset(f"{one}@8@fifth") == f"{plain_dataset(one)}@8@fifth"
    for spec in (f"imagefolder:{tree}", f"imagefolder:{tree}/nowhere", "imagefolder:", "digits", "npz:x.npz", "a:b"):
        assert training_dataset(spec) == plain_dataset(spec)
    (tmp_path / "link").symlink_to(tmp_path / "one")
    for tested in (one, f"{one}@4", f"{one}/", f"imagefolder:{tmp_path / 'link'}"):
        with pytest.raises(UserError, match=r"was trained on four fifths of .*@fifth, the fifth that was held back"):
            check_held_back(f"{one}@fifth", tested)
    for trained, tested in (
        (f"{one}@fifth", f"{one}@4@fifth"),
        (f"{one}@fifth", f"imagefolder:{tree}"),
        (f"{one}@fifth", "digits"),
        (f"imagefolder:{tree}", f"imagefolder:{tree}"),
        (None, one),
    ):
        check_held_back(trained, tested)
    with pytest.raises(UserError, match=r"was trained on the images of .*/train@4: leave out the dataset, for"):
        check_held_back(f"imagefolder:{tree}", f"imagefolder:{tree}/train@4")
    check_held_back(f"imagefolder:{tree}", f"imagefolder:{tree}/test")


def test_split_folders_need_no_fifth(tree: Path) -> None:
    refused(tree, "has folders for its splits: leave out @fifth", how="@fifth")


def test_empty_classes(tree: Path, flat: Path) -> None:
    shutil.rmtree(flat)
    (flat / "c").mkdir(parents=True)
    save(flat / "a/0.png")
    save(flat / "b/0.webp")
    refused(flat, r"flat has 1 class folder without images: c \(images end in .avif, .bmp")
    refused(flat, "1 class folder without images: c", "train", "@fifth")
    shutil.rmtree(flat)
    (tree / "train/bird").mkdir()
    refused(tree, "train has 1 class folder without images: bird", "train")
    assert folder(tree).notes == ("6 images, by class 1 = cat (3), 2 = dog (3); none of bird",)
    (tree / "test/bird").mkdir()
    assert folder(tree).labels.tolist() == [1, 2] * 3
    for file in tree.glob("*/*/*"):
        file.rename(file.with_suffix(".xyz"))
    for split in ("train", "test"):
        refused(tree, f"no images for the {split} split", split)


def test_a_file_says_the_labels_of_the_folders(tree: Path) -> None:
    def say(value: object) -> None:
        (tree / "classes.json").write_text(json.dumps(value))

    say({"cat": 3, "dog": 5, "lizard": 0})
    data = folder(tree)
    assert data.labels.tolist() == [3, 5] * 3 and data.num_classes == 6 and not data.num_classes_known
    assert data.class_names == ("lizard", "1", "2", "cat", "4", "dog")
    assert data.notes == ("6 images, by class 3 = cat (3), 5 = dog (3); none of lizard",)
    assert data.with_classes(1000).num_classes == 1000
    with pytest.raises(UserError, match=r"has 5 classes, .* at least 6"):
        data.with_classes(5)
    say(["bird", "dog", "cat", "horse"])
    data = folder(tree)
    assert data.labels.tolist() == [1, 2] * 3 and data.num_classes == 4 and data.num_classes_known
    assert data.images[0, 0, 0, 0] == 1  # a dog
    with pytest.raises(UserError, match=r"has 5 classes, .* has 4"):
        data.with_classes(5)
    say({"cat": 1, "dog": 1})
    assert folder(tree).class_names == ("0", "cat/dog")
    shutil.rmtree(tree / "test/dog")
    assert folder(tree).labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", "3", "null", '"cat"', '["cat", "cat"]', '["cat", 3]', '{"cat": -1}', '{"cat": true}',
        '{"cat": "3"}', '[["cat"]]', '{"cat": [1]}', '{"cat": 1e3}', '{"cat": 99999999999}', "[" * 100_000, "[NaN]",
        "\ud800",
    ],
)  # fmt: skip
def test_a_wrong_file_of_labels_is_refused(tree: Path, text: str) -> None:
    (tree / "classes.json").write_text(text, errors="surrogatepass")
    refused(tree, "classes.json")


def test_the_file_of_labels_names_no_other_folders(tree: Path) -> None:
    (tree / "classes.json").write_text('{"cat": 0, "dog": 1, "../train/cat": 2, ".": 3}')
    assert folder(tree).labels.bincount().tolist() == [3, 3]


def test_classes_have_the_labels_that_their_names_have_in_the_models_dataset(tree: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog", "frog"):
        save(tmp_path / "few" / name / "0.png")
        save(tmp_path / "more" / name / "0.png")
    save(tmp_path / "more/bird/0.png")
    few, more = f"imagefolder:{tmp_path / 'few'}", f"imagefolder:{tmp_path / 'more'}"
    names = {0: "cat", 1: "dog", 2: "frog"}
    said = r'write {"cat": 3, "dog": 5, "frog": 6} into .*few/classes.json'
    with pytest.raises(UserError, match=f"cat is class 3 of cifar10, but not of imagefolder:.*few, .*{said}"):
        check_names("cifar10", few, names)
    for known in (more, f"{more}@8@fifth"):
        with pytest.raises(UserError, match=r'write {"cat": 1, "dog": 2, "frog": 3} into'):
            check_names(known, few, names)
    for known in (None, few, f"imagefolder:{tree}", "imagefolder:nowhere", "digits", "npz:x", "a:b", f"{few}@fifth"):
        check_names(known, few, names)
    check_names("cifar10", few, {3: "cat", 5: "dog"})
    with pytest.raises(UserError, match=r'write {"cat": 3, "lynx": "LABEL"} into'):
        check_names("cifar10", few, {0: "cat", 1: "lynx"})
    check_names("cifar10", few, {0: "eagle", 1: "lynx"})
    check_names("cifar10", "svhn", names)
    (tmp_path / "few/classes.json").write_text('{"cat": 0, "dog": 1, "frog": 2}')
    check_names("cifar10", few, names)


def test_folders_that_the_file_of_labels_lacks_are_refused(tree: Path) -> None:
    (tree / "classes.json").write_text('["cat"]')
    refused(tree, "classes.json does not name the folders dog of .*test")


def test_sizes_that_differ_need_resizing(tree: Path) -> None:
    save(tree / "train/dog/9.png", size=(12, 20))
    refused(tree, r"train/cat/0.png is 5x6, train/dog/9.png 20x12 .*make them one size.*@5 resize", "train")
    for data in (folder(tree, "train", "@4"), load(f"imagefolder:{tree}", "train", resize=4)):
        assert data.images.shape == (7, 3, 4, 4)
        assert data.name == f"imagefolder:{tree}@4"
    assert data.images[6].unique().tolist() == [1, 2, 3] and data.labels[6] == 1
    refused(tree, "each side must be at least 1", "train", "@0x4")


def test_resizing_keeps_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    assert torch.equal(folder(tmp_path, how="@8").images[0], torch.full((3, 8, 8), 200, dtype=torch.uint8))
    wide = folder(tmp_path, how="@4x8")
    assert wide.name == f"imagefolder:{tmp_path}@4x8"
    assert wide.images.shape == (2, 3, 4, 8) and wide.images[0, 0, 0, 3:5].tolist() == [200, 200]
    assert folder(tmp_path).images.shape == (2, 3, 8, 24)


def test_a_folder_whose_name_ends_like_a_size_is_itself(tree: Path, flat: Path) -> None:
    (flat / "c").mkdir()
    shutil.copytree(tree / "train", tree / "photos@2")
    shutil.copytree(tree / "train", tree / "photos@fifth")
    for name in ("photos@2", "photos@fifth"):
        assert folder(tree / name).images.shape == (6, 3, 5, 6)
    assert folder(tree / "photos@2", how="@3").images.shape == (6, 3, 3, 3)


def test_links_are_followed_once(tree: Path) -> None:
    (tree / "test/cat/again").symlink_to(tree / "test/cat")
    (tree / "test/dog/up").symlink_to(tree / "test")
    (tree / "test/dog/gone.png").symlink_to(tree / "nowhere.png")
    save(tree / "elsewhere/x/7.png")
    (tree / "test/cat/more").symlink_to(tree / "elsewhere/x")
    refused(tree, r"cannot read 1 of .*dog/gone.png \(FileNotFoundError")
    (tree / "test/dog/gone.png").unlink()
    assert folder(tree).labels.bincount().tolist() == [4, 3]


def test_folders_called_like_images_are_folders(tree: Path) -> None:
    save(tree / "test/cat/8.png/9.png")
    assert folder(tree).labels.bincount().tolist() == [4, 3]


def test_all_unreadable_images_are_named_at_once(tree: Path) -> None:
    whole = (tree / "test/cat/0.png").read_bytes()
    for number in range(7):
        (tree / f"test/cat/bad{number}.png").write_bytes((b"", b"no image", whole[:40], whole[:-30])[number % 4])
    (tree / "test/dog/0.png").write_bytes(b"")
    refused(tree, r"cannot read 8 of 13 images of .*: test/dog/0.png \(it is empty\), .*bad3.png .* and 3 more$")


@pytest.mark.parametrize(
    ("suffix", "words"), [(".heic", "pip install pillow-heif"), (".avif", "pip install -U pillow")]
)
def test_what_pillow_cannot_open_is_said(tree: Path, suffix: str, words: str) -> None:
    (tree / f"test/cat/9{suffix}").write_bytes(b"....ftypxxxx")
    refused(tree, rf"test/cat/9{suffix} \(Pillow .*{words}")


def test_wrong_folders(tree: Path) -> None:
    refused(tree / "nowhere", r"nowhere is not a folder: it must hold train/CLASS/\*.png", "train")
    for split in ("train", "test"):
        refused(tree / "train/cat", "at least two class folders, not 0", split)
    save(tree / "test/horse/0.png")
    refused(tree, "lacks: horse")
    with pytest.raises(UserError, match="at least 1"):
        load(f"imagefolder:{tree}", "train", resize=0)
    with pytest.raises(UserError, match="unknown setting of imagefolder 'size'"):
        load(f"imagefolder:{tree}", "train", size=3)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder_is_named(tree: Path) -> None:
    (tree / "test/dog").chmod(0)
    refused(tree, "cannot read .*dog: Permission denied")
    (tree / "test/dog").chmod(0o755)
