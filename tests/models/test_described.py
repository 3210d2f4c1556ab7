"""A file's description of its network cannot ask for more than the file's own tensors, whatever it says."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from advbench.checkpoint import BEST, ModelCard, RunCard, load_heads, load_model, save_weights, write_card
from advbench.errors import UserError
from advbench.models import build, describe, wrap
from advbench.models.base import Model
from advbench.models.described import rebuild_for

GIB = 2**30
HUGE = 10**6


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """A GiB beyond what this process has: a network of millions of layers ends in an error, not in a dead machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = Path("/proc/self/statm")
    if pages.exists():
        used = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def described(path: Path, tensors: dict[str, Tensor], **changes: Any) -> str:
    """A file of `tensors` with the description of a small mlp, changed."""
    about = {**describe(small("mlp")), **changes}
    safetensors.torch.save_file(tensors, path, {"advbench": json.dumps(about)})
    return str(path)


def small(arch: str, **settings: Any) -> Model:
    settings = settings or {"mlp": {"width": 4, "depth": 1}, "resnet18": {"width": 1}}.get(arch, {})
    return build(arch, num_classes=3, in_channels=1, image_size=8, seed=0, **settings)


CHANGES: dict[str, dict[str, Any]] = {
    "depth": {"settings": {"depth": HUGE}},
    "depth without end": {"settings": {"depth": 10**18, "width": 1}},
    "width": {"settings": {"width": HUGE}},
    "both": {"settings": {"width": HUGE, "depth": HUGE}},
    "classes": {"num_classes": 10**12},
    "channels": {"in_channels": 10**12},
    "pixels": {"image_size": HUGE},
    "beyond 64 bit": {"image_size": 10**40},
    "blocks": {"arch": "resnet18", "settings": {"blocks": [HUGE, 1, 1, 1], "width": 1}},
    "layers": {"arch": "wrn-28-10", "settings": {"depth": 6 * HUGE + 4, "widen": 1}},
    "widen": {"arch": "wrn-28-10", "settings": {"widen": HUGE}},
    "image in a wrapper": {"arch": "resnet18", "image_size": HUGE, "wrappers": [{"name": "attention", "settings": {}}]},
    "width of a wrapper": {"arch": "lenet5", "wrappers": [{"name": "attention", "settings": {"width": 10**12}}]},
    "wrappers": {"wrappers": [{"name": "quantize", "settings": {"layer": "linear", "levels": 2}}] * 1000},
}
STATES = {"one number": {"a": torch.zeros(1)}, "a network": small("mlp").state_dict()}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("change", CHANGES)
def test_sizes_are_bounded_by_the_tensors_of_the_file(change: str, state: str, tmp_path: Path) -> None:
    spec = described(tmp_path / "x.safetensors", STATES[state], **CHANGES[change])
    with pytest.raises(
        UserError, match=r"does not fit .*: as described it is larger than what the file holds"
    ) as caught:
        load_model(spec)
    assert spec in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
def test_sizes_are_bounded_in_a_run_folder_too(change: str, tmp_path: Path) -> None:
    card = {**describe(small("mlp")), **CHANGES[change]}
    files = {BEST: save_weights(small("mlp"), tmp_path / BEST)}
    write_card(
        tmp_path, RunCard(model=ModelCard.model_validate(card), files=files, method="act", dataset="digits", seed=0)
    )
    with pytest.raises(UserError, match="larger than what the file holds"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1).expand(10**12, 64), "one number, repeated"),
        (torch.zeros(10**12, 0), "no number at all"),
        (torch.zeros(1).expand(2**60, 2), "more than can be counted"),
    ],
)
def test_a_tensor_cannot_claim_more_than_it_holds(tensor: Tensor, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"linear.weight": tensor, "linear.bias": torch.zeros(1).expand(len(tensor))}, path)
    for arch in ("linear", "mlp", "resnet18"):
        with pytest.raises(UserError, match=f"does not fit {arch}|architecture {arch} failed"):
            load_model(str(path), arch=arch)
    if tensor.numel() == 0:
        spec = described(tmp_path / "x.safetensors", {"linear.weight": tensor}, num_classes=10**6)
        with pytest.raises(UserError, match="larger than what the file holds"):
            load_model(spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"depth": "many"}},
        {"settings": {"depth": 1.5}},
        {"settings": {"normalize": [[0.5], [float("nan")]]}},
        {"settings": [1]},
        {"wrappers": None},
        {"wrappers": [3]},
        {"num_classes": "ten"},
        {"image_size": [8]},
        {"in_channels": None},
    ],
)
def test_a_faulty_description_is_refused_in_one_line(changes: dict[str, Any], tmp_path: Path) -> None:
    spec = described(tmp_path / "x.safetensors", small("mlp").state_dict(), **changes)
    with pytest.raises(UserError) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_a_deep_description_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"advbench": "[" * 100_000})
    with pytest.raises(UserError, match="has a faulty description of its architecture"):
        load_model(str(path))


def test_wrapped_and_normalised_networks_are_rebuilt() -> None:
    inner = small("resnet18", width=2, normalize=[[0.5], [0.25]], blocks=[1, 1, 1, 1])
    net = wrap(wrap(inner, "attention", seed=1, width=3), "quantize", layer="net.layer1", levels=2**16)
    again = rebuild_for(net.state_dict(), describe(net), "x")
    assert describe(again) == describe(net)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in net.state_dict().items()
    }
    assert all(value.device.type == "cpu" for value in [*again.parameters(), *again.buffers()])


def test_half_precision_counts_as_many_numbers() -> None:
    net = small("mlp")
    half = {name: value.half() for name, value in net.state_dict().items()}
    assert describe(rebuild_for(half, describe(net), "x")) == describe(net)


def test_heads_of_tasks_are_bounded_by_their_own_files(tmp_path: Path) -> None:
    net = build("resnet18", num_classes=10, in_channels=1, image_size=2048, seed=0, width=1)  # any size of image fits
    files = {BEST: save_weights(net, tmp_path / BEST)}
    (tmp_path / "parts").mkdir()
    files["parts/autoencoder.safetensors"] = save_weights(
        torch.nn.Linear(1, 1), tmp_path / "parts/autoencoder.safetensors"
    )
    card = RunCard(
        model=ModelCard.model_validate(describe(net)), files=files, method="multi-task", dataset="digits", seed=0,
        method_settings={"tasks": ["autoencoder"]},
    )  # fmt: skip
    write_card(tmp_path, card)
    with pytest.raises(
        UserError, match=r"autoencoder\.safetensors does not fit autoencoder: as described it is larger"
    ):
        load_heads(tmp_path, net)
