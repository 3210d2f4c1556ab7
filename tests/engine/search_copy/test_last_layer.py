"""The last layer of a copy in bf16 computes in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.engine.search_copy import search_copy
from advbench.engine.search_copy.last_layer import Float32Linear
from advbench.models import build

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def layers(net: nn.Module, dtype: torch.dtype | None = torch.bfloat16) -> list[str]:
    copy, _ = search_copy(net, dtype, example=X)
    return [name for name, module in copy.net.named_modules() if isinstance(module, Float32Linear)]


class Twice(nn.Module):
    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.again, self.layer = again, nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x.flatten(1))
        return self.layer(z) if self.again else z.relu()


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net[1].register_forward_hook(lambda module, given, out: 2 * out)
    return net


def test_it_is_found_where_its_outputs_are_the_networks() -> None:
    assert layers(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))) == ["3"]
    assert len(layers(build("small_cnn_16_32_100", num_classes=10, in_channels=1, image_size=8, seed=0))) == 1
    assert layers(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), None) == []
    assert layers(Twice(again=True)) == layers(Twice(again=False)) == layers(hooked()) == []


@pytest.mark.parametrize("arch", ["mlp", "small_cnn_16_32_100"])
def test_logits_are_not_rounded_to_bf16(arch: str) -> None:
    net = build(arch, num_classes=10, in_channels=1, image_size=8, seed=0).eval()
    z = X.clone().requires_grad_()
    copy, _ = search_copy(net, torch.bfloat16, example=X)
    logits = copy(z)
    (gradient,) = torch.autograd.grad(logits.square().sum(), z)
    assert logits.dtype == torch.float32 and gradient.isfinite().all() and gradient.any()
    assert not torch.equal(logits, logits.bfloat16().float())
    exact = net(X)
    rounded = (exact - exact.bfloat16().float()).abs().max()
    assert (logits - exact).abs().max() < 20 * rounded
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_what_it_computes() -> None:
    layer = nn.Linear(64, 10).bfloat16()
    x = X.flatten(1).bfloat16()
    made = Float32Linear(layer)
    assert torch.allclose(made(x), x.float() @ layer.weight.float().t() + layer.bias.float(), atol=1e-6)
    assert layer.weight.dtype == torch.bfloat16
