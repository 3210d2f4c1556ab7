"""The quantising wrapper: its outputs, its gradients, and that it is rebuilt from its description."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advbench.checkpoint import weights_sha256
from advbench.errors import UserError
from advbench.models import build, describe, rebuild, wrap, wrappers
from advbench.models.base import Model, straight_through
from advbench.models.quantize import Quantizer


def net() -> Model:
    return build("lenet5", num_classes=10, in_channels=1, image_size=8, seed=0).eval()


@given(value=st.floats(-4, 4, width=32), levels=st.integers(1, 64))
def test_values_are_rounded_down_to_multiples(value: float, levels: int) -> None:
    h = torch.tensor([value])
    q = Quantizer(levels)(h)
    assert torch.equal(q, torch.floor(h * levels) / levels)
    assert float(q) <= value + 1e-6 and value - float(q) <= 1 / levels + 1e-6


def test_the_gradient_is_zero_and_with_straight_through_the_identity_at_equal_values() -> None:
    quantizer = Quantizer(8)
    h = torch.randn(100, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = quantizer(h)
    (zero,) = torch.autograd.grad(plain.sum(), h)
    assert torch.equal(zero, torch.zeros(100))
    with straight_through(quantizer) as layers:
        assert layers == 1
        through = quantizer(h)
    assert quantizer.straight_through is False
    (one,) = torch.autograd.grad(through.sum(), h)
    assert torch.equal(one, torch.ones(100)) and torch.equal(through, plain)


def test_the_named_layer_is_quantised_and_the_original_is_left_alone() -> None:
    inner = net()
    digest, keys = weights_sha256(inner), list(inner.state_dict())
    wrapped = wrap(inner, "quantize", layer="conv1", levels=4).eval()
    x = torch.rand(2, 1, 8, 8)
    by_hand = copy.deepcopy(inner)
    by_hand.conv1.register_forward_hook(lambda _m, _i, out: torch.floor(4 * out) / 4)
    assert torch.equal(wrapped(x), by_hand(x)) and not torch.equal(wrapped(x), inner(x))
    assert torch.equal(wrapped.head(wrapped.features(x)), wrapped(x))
    assert weights_sha256(inner) == digest and list(inner.state_dict()) == keys


def test_a_list_of_layers_has_no_outputs_to_quantise() -> None:
    mlp = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0)
    assert isinstance(mlp.hidden, torch.nn.ModuleList)
    with pytest.raises(UserError, match=r"unknown layer 'hidden': .*choose from act, hidden\.0"):
        wrap(mlp, "quantize", layer="hidden", levels=4)
    assert wrap(mlp, "quantize", layer="hidden.0", levels=4)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_gradients_pass_only_straight_through() -> None:
    wrapped = wrap(net(), "quantize", layer="conv1", levels=4).eval()
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    (blocked,) = torch.autograd.grad(wrapped(x).sum(), x)
    with straight_through(wrapped):
        (passed,) = torch.autograd.grad(wrapped(x).sum(), x)
    assert blocked.abs().sum() == 0 < passed.abs().sum()


def test_straight_through_is_set_back_after_an_error() -> None:
    wrapped = wrap(net(), "quantize", layer="conv1", levels=4)
    with pytest.raises(RuntimeError, match="stop"), straight_through(wrapped):
        raise RuntimeError("stop")
    assert not any(getattr(layer, "straight_through", False) for layer in wrapped.modules())


def test_a_wrapped_network_is_rebuilt_and_its_hash_knows_the_settings() -> None:
    twice = wrap(wrap(net(), "quantize", layer="conv1", levels=4), "quantize", layer="net.conv2", levels=2)
    again = rebuild(describe(twice), seed=0)
    again.load_state_dict(twice.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.eval()(x), twice.eval()(x))
    assert [wrapper["settings"]["levels"] for wrapper in twice.wrappers] == [4, 2]
    hashes = {weights_sha256(wrap(net(), "quantize", layer="conv1", levels=n)) for n in (4, 8)}
    assert len(hashes) == 2


def test_any_module_can_be_wrapped() -> None:
    foreign = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    wrapped = wrap(foreign, "quantize", layer="1", levels=2)
    logits = wrapped(torch.rand(5, 1, 2, 2))
    assert torch.equal(logits * 2, (logits * 2).round())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("quantise", {}, "unknown wrapper 'quantise': did you mean quantize"),
        ("quantize", {"layer": "conv3", "levels": 8}, "unknown layer 'conv3': did you mean conv"),
        ("quantize", {"layer": "conv1", "levels": 0}, "levels is 0"),
        ("quantize", {"layer": "conv1"}, "quantize needs the setting levels"),
        ("quantize", {"layer": "conv1", "levels": 2, "bits": 3}, "unknown setting of quantize 'bits'"),
    ],
)
def test_wrong_requests_are_refused(name: str, settings: dict[str, object], message: str) -> None:
    assert "quantize" in wrappers()
    with pytest.raises(UserError, match=message):
        wrap(net(), name, **settings)


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    wrapped = wrap(nn.Sequential(nn.Flatten(1, 2), nn.LSTM(2, 3)), "quantize", layer="1", levels=4)
    with pytest.raises(UserError, match="gives a tuple is not quantised"):
        wrapped(torch.rand(5, 1, 2, 2))
