"""Published networks have their published accuracies on the real test sets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from advbench.checkpoint import Loaded, load_model
from advbench.data import load
from advbench.errors import UserError


def right(loaded: Loaded, dataset: str, count: int | None = None) -> int:
    try:
        data = load(dataset, "test")
    except UserError as error:
        pytest.skip(f"{dataset} cannot be had: {error}")
    count, found = count or len(data), 0
    with torch.no_grad():
        for start in range(0, count, 200):
            x, y = data.batch(slice(start, min(start + 200, count)))
            found += int((loaded.net(x).argmax(1) == y).sum())
    return found


def test_model_test_is_the_published_file() -> None:
    loaded = load_model("pyautoattack:model_test", dataset="cifar10")
    assert (loaded.arch, loaded.num_classes, loaded.dataset) == ("resnet18", 10, "cifar10")
    assert loaded.weights_sha256 == "2bf6ed5a68aec84fdcc8b300f2169e4c758e2f6687c365f3c62c73dc68cc1d4c"


@pytest.mark.network
def test_model_test_on_the_first_images_of_cifar10() -> None:
    # All 10,000 take minutes on a CPU and give 9,422 right.
    assert right(load_model("pyautoattack:model_test", dataset="cifar10"), "cifar10", 200) == 188


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "sha256", "correct"),
    [
        ("mnist_lenet5_advtrained.pt", "b89abfcfe8b33235fe8f8e964188d82a97c56a12ffe25132eaba197e40ac7658", 9864),
        ("mnist_lenet5_clntrained.pt", "551a11267982991fb0c9f74e9094de19e54b51455eff9bd1c19c77a69d85156a", 9889),
    ],
)
def test_advertorchs_networks_on_all_of_mnist(advertorch: Path, name: str, sha256: str, correct: int) -> None:
    assert hashlib.sha256((advertorch / name).read_bytes()).hexdigest() == sha256
    loaded = load_model(str(advertorch / name), arch="lenet5")
    assert loaded.num_classes == 10 and loaded.net.image_size == 28
    assert right(loaded, "mnist") == correct
