"""No honest model of real data is flagged: standard and robust ones of MNIST, Fashion-MNIST and CIFAR-10.

The trainer makes each in a minute or less.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import advbench
from advbench.data.dataset import Dataset
from advbench.errors import UserError

N = 128
# The training eps of the robust ones, and the grids: some images stand and some fall.
GRIDS = {
    "mnist": ("0.2", {"standard": ["0", "0.05", "0.1"], "robust": ["0", "0.1", "0.2", "0.3"]}),
    "fashion-mnist": ("0.1", {"standard": ["0", "0.02", "0.05"], "robust": ["0", "0.05", "0.1", "0.2"]}),
    "cifar10": ("8/255", {"standard": ["0", "1/255", "2/255"], "robust": ["0", "4/255", "8/255", "16/255"]}),
}
ARCHES = ("mlp", "small_cnn_16_32_100")
METHODS = {"standard": ("standard",), "robust": ("pgd-at", "trades")}
MODELS = [
    (dataset, method, arch)
    for dataset in GRIDS
    for kind, methods in METHODS.items()
    for method in methods
    for arch in (ARCHES if method != "trades" else ARCHES[:1])
]


def first(dataset: str) -> Dataset:
    try:
        return advbench.load_data(dataset).subset(range(N))
    except UserError as error:
        pytest.skip(f"{dataset} cannot be had: {error}")


def test_there_are_twelve_at_least() -> None:
    assert len(MODELS) >= 12


@pytest.mark.long
@pytest.mark.network
@pytest.mark.usefixtures("whole_probes")
@pytest.mark.parametrize(("dataset", "method", "arch"), MODELS)
def test_honest_models_are_not_flagged(dataset: str, method: str, arch: str, tmp_path: Path) -> None:
    data, (eps, grids) = first(dataset), GRIDS[dataset]
    kind = "standard" if method == "standard" else "robust"
    short: dict[str, Any] = {"train_n": 10_000, "batch_size": 64, "validation.steps": 5, "augment.crop": 0}
    if kind == "robust":
        short["inner.steps"] = 5
    run = advbench.train(
        method,
        dataset=dataset,
        arch=arch,
        eps="0" if kind == "standard" else eps,
        epochs=4,
        settings=short,
        device="cpu",
        out=tmp_path / "run",
    )
    record = advbench.evaluate(str(run), data, eps=grids[kind], device="cpu", processes=1).record
    assert record.clean > 0.2, "did not learn"
    assert [flag for flag in record.flags if flag.severity != "note"] == []
