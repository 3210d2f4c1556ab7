"""The hash that identifies weights, and weight files."""

from __future__ import annotations

import copy
import hashlib
import warnings
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from advbench.checkpoint import load_model, save_weights, weights_sha256
from advbench.files import sha256_file
from advbench.models import build


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, 2.0]]))
        self.register_buffer("n", torch.tensor(3))


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    wanted = hashlib.sha256(
        b"n int64 []\n" + (3).to_bytes(8, "little") + b"w float32 [1, 2]\n" + bytes.fromhex("0000803f00000040")
    )
    assert weights_sha256(Tiny()) == wanted.hexdigest()


def test_every_part_of_the_weights_counts() -> None:
    hashes = {weights_sha256(Tiny())}
    for change in (
        lambda net: net.w.data.mul_(1.0000001),
        lambda net: net.n.add_(1),
        lambda net: setattr(net, "w", nn.Parameter(net.w.data.t().contiguous())),
        lambda net: net.double(),
        lambda net: net.register_buffer("m", torch.tensor(3)),
    ):
        net = Tiny()
        change(net)
        hashes.add(weights_sha256(net))
    assert len(hashes) == 6


def test_the_hash_is_of_values_alone(tmp_path: Path) -> None:
    net = build("resnet18", num_classes=10, in_channels=3, image_size=32, seed=0, width=8)
    digest = weights_sha256(net)
    assert weights_sha256(copy.deepcopy(net).to(memory_format=torch.channels_last).eval()) == digest  # type: ignore[call-overload]
    save_weights(net, tmp_path / "a.safetensors")
    torch.save(dict(reversed(net.state_dict().items())), tmp_path / "b.pt")
    assert load_model(str(tmp_path / "a.safetensors")).weights_sha256 == digest
    narrow = load_model(str(tmp_path / "a.safetensors")).net
    narrow.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True))
    assert weights_sha256(narrow) == digest


def test_half_precision_and_empty_tensors_have_hashes() -> None:
    net = nn.Module()
    net.register_buffer("b", torch.zeros(2, dtype=torch.bfloat16))
    net.register_buffer("e", torch.zeros(0))
    net.register_buffer("f", torch.tensor([True]))
    assert len(weights_sha256(net)) == 64


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    net = build("lenet5", num_classes=10, in_channels=1, image_size=8, seed=0)
    first = save_weights(net, tmp_path / "a" / "x.safetensors")
    second = save_weights(copy.deepcopy(net), tmp_path / "y.safetensors")
    assert first == second == sha256_file(tmp_path / "a" / "x.safetensors")


def test_shared_weights_are_saved(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight  # type: ignore[union-attr]
    save_weights(net, tmp_path / "x.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert torch.equal(stored["0.weight"], stored["1.weight"]) and len(stored) == 4


def test_tensors_that_are_neither_parameters_nor_buffers_count() -> None:
    """Such as the packed weights of quantised layers."""

    class Packed(Tiny):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def get_extra_state(self) -> tuple[torch.Tensor, None]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch deprecates these tensors
                return torch.quantize_per_tensor(torch.full((2,), 1 / self.value), 0.5, 0, torch.qint8), None

    assert len(weights_sha256(Packed(0.0))) == 64  # its state cannot be read
    assert weights_sha256(Packed(1.0)) == weights_sha256(Packed(1.0)) != weights_sha256(Packed(0.5))
