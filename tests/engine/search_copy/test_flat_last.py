"""Linear layers that read maps in the channels-last layout: the same numbers, however the maps are flattened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from advbench.engine.search_copy.copy import SearchCopy, search_copy
from advbench.engine.search_copy.flat_last import FlatLinear
from advbench.models import build

FORMS = ("flatten", "torch.flatten", "module", "view", "view by size", "reshape", "torch.reshape")


class Flattening(nn.Module):
    """A strided convolution, whose maps are flattened for a linear layer in the way of `how`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        side = 1 if how == "pooled" else 3
        self.conv, self.flat = nn.Conv2d(2, 6, 3, stride=2), nn.Flatten()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear, self.other = nn.Linear(6 * side * side, 5), nn.Linear(54, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.conv(x))
        if self.how == "flatten":
            flat = z.flatten(1)
        elif self.how == "torch.flatten":
            flat = torch.flatten(z, start_dim=1)
        elif self.how == "module":
            flat = self.flat(z)
        elif self.how == "view":
            flat = z.view(-1, 54)
        elif self.how == "view by size":
            flat = z.view(z.size(0), -1)
        elif self.how == "reshape":
            flat = z.reshape(x.shape[0], -1)
        elif self.how == "torch.reshape":
            flat = torch.reshape(z, (-1, 54))
        elif self.how == "pooled":
            flat = self.pool(z).flatten(1)
        elif self.how == "read twice":
            flat = z.flatten(1)
            return self.linear(flat) + self.other(flat)  # type: ignore[no-any-return]
        elif self.how == "layer twice":
            return self.linear(z.flatten(1)) + self.linear(x[:, 0, :6].sum(2).repeat(1, 9))  # type: ignore[no-any-return]
        else:
            flat = z.flatten(2).transpose(1, 2).flatten(1)
        return self.linear(flat)  # type: ignore[no-any-return]


def images() -> Tensor:
    return torch.rand(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def derived(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    z = x.clone().requires_grad_()
    logits = net(z)
    (gradient,) = torch.autograd.grad(logits.square().sum(), z)
    return logits.detach(), gradient


def flat_layers(twin: SearchCopy) -> list[str]:
    return [name for name, module in twin.quick.named_modules() if isinstance(module, FlatLinear)]


@pytest.mark.parametrize("how", FORMS)
def test_logits_and_gradients_are_the_models(how: str) -> None:
    torch.manual_seed(0)
    net, x = Flattening(how).eval(), images()
    twin, notes = search_copy(net, example=x[:1])
    assert flat_layers(twin) == ["linear"] and not notes
    assert twin.layout is torch.channels_last
    for ours, wanted in zip(derived(twin, x), derived(net, x), strict=True):
        assert torch.allclose(ours, wanted, atol=1e-6 * float(wanted.abs().max()))
        assert bool(wanted.abs().sum() > 0)
    with torch.no_grad():
        assert torch.allclose(twin(x), net(x), atol=1e-5)  # the other path: forward alone


@pytest.mark.parametrize("how", ["pooled", "read twice", "layer twice", "turned"])
def test_what_is_no_such_pair_stays(how: str) -> None:
    torch.manual_seed(0)
    twin, _ = search_copy(Flattening(how), example=images()[:1])
    assert twin.quick is twin.net


def test_a_watched_layer_stays() -> None:
    net = Flattening("flatten")
    net.linear.register_forward_hook(lambda module, args, output: output * 2)
    twin, _ = search_copy(net, example=images()[:1])
    assert twin.quick is twin.net
    assert torch.allclose(twin(images()), net(images()), atol=1e-5)


class Copies(TorchDispatchMode):
    """Counts what makes a tensor contiguous."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arch", ["lenet5", "small_cnn", "small_cnn_16_32_100"])
def test_nothing_is_copied_on_the_way(arch: str) -> None:
    net = build(arch, num_classes=10, in_channels=1, image_size=28, seed=0)
    twin, _ = search_copy(net)
    assert len(flat_layers(twin)) == 1
    plain = SearchCopy(twin.net)
    plain.in_layout(torch.channels_last)
    z = torch.rand(4, 1, 28, 28).requires_grad_()
    counts = []
    for one in (plain, twin):
        with Copies() as copies:
            torch.autograd.grad(one(z).sum(), z)
        counts.append(copies.count)
    assert counts[1] < counts[0]


class Viewing(Flattening):
    """What is read twice stays as it is, and `view` cannot flatten maps that lie channels last."""

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.relu(self.conv(x)).view(x.size(0), -1)
        return self.linear(flat) + self.other(flat)  # type: ignore[no-any-return]


def test_a_model_that_only_works_in_its_own_layout_keeps_it() -> None:
    torch.manual_seed(0)
    net, x = Viewing("").eval(), images()
    twin, notes = search_copy(net, example=x[:1])
    assert twin.layout is torch.contiguous_format
    assert len(notes) == 1 and notes[0].startswith("not in the channels-last layout") and "view" in notes[0]
    for ours, wanted in zip(derived(twin, x), derived(net, x), strict=True):
        assert torch.allclose(ours, wanted, atol=1e-6 * float(wanted.abs().max()))
    half, notes = search_copy(net, torch.bfloat16, example=x[:1])
    assert notes[0].startswith("not in the channels-last layout")
    assert torch.allclose(half(x), net(x), atol=0.02)


@pytest.mark.parametrize("arch", ["mlp", "linear"])
def test_a_layer_that_reads_the_images_stays(arch: str) -> None:
    twin, _ = search_copy(build(arch, num_classes=10, in_channels=3, image_size=8, seed=0))
    assert twin.quick is twin.net
