import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from advbench.data import load


def test_svhn_in_its_own_format(cache: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    folder, address = served
    generator = np.random.default_rng(0)
    stored, listed = {}, {}
    for split, labels in (("train", [1, 10, 3]), ("test", [10, 9])):
        pixels = generator.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        file = folder / f"{split}_32x32.mat"
        savemat(file, {"X": pixels, "y": np.array(labels, dtype=np.uint8)[:, None]})
        listed[split] = [address + file.name, file.name, hashlib.md5(file.read_bytes()).hexdigest()]
        stored[split] = pixels
    monkeypatch.setattr(SVHN, "split_list", listed)
    train, test = load("svhn", "train"), load("svhn", "test")
    assert train.labels.tolist() == [1, 0, 3]  # the original calls the digit 0 "10"
    assert test.labels.tolist() == [0, 9]
    assert np.array_equal(train.images.numpy(), stored["train"].transpose(3, 2, 0, 1))
    assert test.images[1, 2, 5, 7] == stored["test"][5, 7, 2, 1]
