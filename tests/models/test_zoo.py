"""Every architecture of the registry: shapes, gradients, seeds, saving and loading."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from advbench.checkpoint import load_model, save_weights, weights_sha256
from advbench.errors import UserError
from advbench.models import architectures, build, describe, parse_wrapper, rebuild, settings_of, wrap, wrappers
from advbench.models.base import ACTIVATIONS, STATISTICS, Model
from advbench.registry import find

ARCHS = sorted(architectures())
SHAPES = [(1, 8), (1, 28), (3, 32)]


def small(arch: str) -> dict[str, Any]:
    """Settings that make an architecture cheap; its code stays the same."""
    known = settings_of(find("models", arch))
    if "widen" in known:
        return {"widen": 1, "depth": 10}
    return {"width": 8} if "width" in known else {}


def make(arch: str, channels: int = 1, side: int = 8, seed: int | None = 0, **settings: Any) -> Model:
    chosen = {**small(arch), **settings}
    return build(arch, num_classes=7, in_channels=channels, image_size=side, seed=seed, **chosen)


@pytest.mark.parametrize(("channels", "side"), SHAPES)
@pytest.mark.parametrize("arch", ARCHS)
def test_images_become_logits_and_every_parameter_gets_a_gradient(arch: str, channels: int, side: int) -> None:
    net = make(arch, channels, side)
    x = torch.rand(4, channels, side, side, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = net(x)
    assert logits.shape == (4, 7)
    logits.logsumexp(1).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("sides", [(40, 24), (8, 13)])
@pytest.mark.parametrize("arch", ARCHS)
def test_images_need_not_be_square(arch: str, sides: tuple[int, int]) -> None:
    net = build(arch, num_classes=2, in_channels=1, image_size=sides, seed=0, **small(arch)).eval()
    x = torch.rand(3, 1, *sides, generator=torch.Generator().manual_seed(0))
    assert net.shape == (1, *sides) and net(x).shape == (3, 2)
    assert net.features(x).shape == (3, net.feature_dim)
    again = rebuild(json.loads(json.dumps(describe(net))), seed=0).eval()
    assert torch.equal(again(x), net(x))
    if net.has_maps:
        assert wrap(net, "attention", width=2)(x).shape == (3, 2)
    square = build(arch, num_classes=2, in_channels=1, image_size=(16, 16), seed=0, **small(arch))
    plain = build(arch, num_classes=2, in_channels=1, image_size=16, seed=0, **small(arch))
    assert weights_sha256(square) == weights_sha256(plain)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_head_of_the_features_is_the_forward_pass(arch: str) -> None:
    net = make(arch, 3, 32).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    z = net.features(x)
    assert z.shape == (2, net.feature_dim)
    assert torch.equal(net.head(z), net(x))


@pytest.mark.parametrize("arch", ARCHS)
def test_local_features_are_there_where_the_entry_says_so(arch: str) -> None:
    net = make(arch, 3, 32).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert net.has_maps is bool(find("models", arch).about.get("maps"))
    if net.has_maps:
        maps, z = net.maps_and_features(x)
        assert maps.dim() == 4 and len(maps) == 2 and maps.shape[2] >= 4
        assert torch.equal(z, net.features(x)) and torch.equal(maps, net.feature_maps(x))
    else:
        with pytest.raises(UserError, match="choose from lenet5, "):
            net.feature_maps(x)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_seed_decides_the_weights_and_nothing_else_is_drawn(arch: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (weights_sha256(make(arch, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other
    weights_sha256(make(arch, seed=None))
    assert not torch.equal(torch.get_rng_state(), before)  # without a seed: torch's own numbers


@pytest.mark.parametrize("arch", ARCHS)
def test_saved_and_loaded_bit_for_bit(arch: str, tmp_path: Any) -> None:
    net = make(arch, activation="silu", normalize="mnist", channels=1, side=28)
    net(torch.rand(4, 1, 28, 28))  # moves BatchNorm's statistics
    save_weights(net, tmp_path / "net.safetensors")
    loaded = load_model(str(tmp_path / "net.safetensors"))  # its header says what it is
    assert isinstance(loaded.net, Model)
    assert describe(loaded.net) == describe(net)
    assert loaded.weights_sha256 == weights_sha256(net)
    wanted = net.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.net.state_dict().items())
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded.net(x), net.eval()(x))


@pytest.mark.parametrize("arch", ARCHS)
def test_rebuilt_from_its_description(arch: str) -> None:
    net = make(arch, 3, 32)
    assert weights_sha256(rebuild(describe(net), seed=0)) == weights_sha256(net)


@pytest.mark.parametrize(
    ("arch", "classes", "channels", "side", "published"),
    [
        ("resnet18", 10, 3, 32, 11_173_962),
        ("preact_resnet18", 10, 3, 32, 11_172_170),
        ("wrn-28-10", 10, 3, 32, 36_479_194),
        ("wrn-34-10", 10, 3, 32, 46_160_474),
        ("small_cnn", 10, 1, 28, 312_202),
        ("small_cnn_16_32_100", 10, 1, 28, 166_406),
        ("linear", 10, 1, 28, 7_850),
    ],
)
def test_full_size_has_the_published_number_of_parameters(
    arch: str, classes: int, channels: int, side: int, published: int
) -> None:
    with torch.device("meta"):
        net = build(arch, num_classes=classes, in_channels=channels, image_size=side)
        assert net(torch.empty(2, channels, side, side)).shape == (2, classes)
    assert sum(parameter.numel() for parameter in net.parameters()) == published


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations(activation: str) -> None:
    net = make("small_cnn", activation=activation)
    kinds = {type(module) for module in net.modules()}
    assert ACTIVATIONS[activation] in kinds
    assert not kinds & (set(ACTIVATIONS.values()) - {ACTIVATIONS[activation]})


@pytest.mark.parametrize(
    ("arch", "settings"),
    [("mlp", {"activation": "identity"}), ("small_cnn_16_32_100", {"activation": "identity"}), ("conv_linear", {})],
)
def test_linear_nets_are_affine(arch: str, settings: dict[str, Any]) -> None:
    net = make(arch, 3, 8, **settings).eval()
    x, y = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net((x + y) / 2), (net(x) + net(y)) / 2, atol=1e-5)


@pytest.mark.parametrize("sides", [(8, 8), (5, 6)])
def test_conv_linear_is_circular(sides: tuple[int, int]) -> None:
    """Against sums by hand: z_i = sum_k w_k x_(i + k), with indices modulo the sides, for each channel."""
    net = build("conv_linear", num_classes=2, in_channels=2, image_size=sides, seed=0, depth=3, scale=1.0)
    x = torch.rand(3, 2, *sides, generator=torch.Generator().manual_seed(0))
    z = x
    for w in net.filters:
        z = sum(w[:, i, j, None, None] * z.roll((-i, -j), (2, 3)) for i in range(sides[0]) for j in range(sides[1]))  # type: ignore[assignment]
    assert torch.allclose(net.features(x), z.flatten(1), atol=1e-4)
    assert len(make("conv_linear", depth=1).filters) == 0


def test_the_scale_of_conv_linear_is_that_of_each_layer() -> None:
    small, large = (make("conv_linear", depth=3, scale=scale, bias=False) for scale in (0.1, 1.0))
    x = torch.rand(4, 1, 8, 8)
    assert torch.allclose(small(x), 1e-3 * large(x), rtol=1e-4, atol=1e-8)
    for w in large.filters:
        assert float(w.detach().std()) == pytest.approx(1 / 8, rel=0.3)


def test_normalisation_is_inside_and_none_by_default() -> None:
    x = torch.rand(2, 3, 8, 8)
    plain = make("linear", 3)
    assert plain.normalise(x) is x
    assert torch.equal(plain.mean, torch.zeros(1, 3, 1, 1)) and torch.equal(plain.std, torch.ones(1, 3, 1, 1))
    by_name = make("linear", 3, normalize="cifar10")
    by_hand = make("linear", 3, normalize=[list(values) for values in STATISTICS["cifar10"]])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in STATISTICS["cifar10"])
    wanted = by_name.linear(((x - mean) / std).flatten(1))
    assert torch.equal(by_name(x), wanted) and torch.equal(by_hand(x), wanted)
    assert "mean" not in by_name.state_dict()  # a setting: states saved elsewhere load
    assert weights_sha256(by_name) != weights_sha256(plain)  # but it decides the answer, so the hash knows it


def test_statistics_are_those_of_the_digits() -> None:
    from advbench.data import load

    pixels = load("digits", "train").images.double() / 16
    (mean,), (std,) = STATISTICS["digits"]
    assert abs(float(pixels.mean()) - mean) < 1e-2 and abs(float(pixels.std()) - std) < 1e-2


BAD: list[tuple[dict[str, Any], str]] = [
    ({"arch": "resnet19"}, "unknown architecture 'resnet19': did you mean resnet18"),
    ({"arch": "quantize"}, "quantize is a wrapper, not an architecture: choose from conv_linear, lenet5, "),
    ({"arch": "mlp", "widht": 3}, "unknown setting of mlp 'widht': did you mean width"),
    ({"arch": "mlp", "width": 0}, "width is 0: write a whole number above 0"),
    ({"arch": "mlp", "depth": 1.5}, "depth is 1.5: write a whole number above 0"),
    ({"arch": "mlp", "width": True}, "width is True"),
    ({"arch": "conv_linear", "scale": 0}, "scale is 0: write a number above 0"),
    ({"arch": "conv_linear", "depth": 0}, "depth is 0: write a whole number above 0"),
    ({"arch": "mlp", "activation": "tanh"}, "unknown activation 'tanh': .*relu, silu, softplus"),
    ({"arch": "mlp", "normalize": "cifar11"}, "unknown normalize 'cifar11'"),
    ({"arch": "mlp", "normalize": "cifar10"}, "normalize is .*: for 1 channels write"),
    ({"arch": "mlp", "normalize": [[0.0], [0.0]]}, "must be above 0"),
    ({"arch": "mlp", "normalize": [[0.0]]}, "normalize is"),
    ({"arch": "mlp", "width": torch.tensor(3)}, "settings of mlp must be numbers, texts"),
    ({"arch": "small_cnn", "dropout": 1.0}, "dropout is 1.0: write a number from 0 to below 1"),
    ({"arch": "small_cnn", "image_size": 3}, "small_cnn needs images of at least 4x4, not 3x3"),
    ({"arch": "lenet5", "image_size": (9, 3)}, "lenet5 needs images of at least 4x4, not 9x3"),
    ({"arch": "wrn-28-10", "depth": 29}, "depth is 29: a wide ResNet has 10, 16, 22, 28, 34"),
    ({"arch": "resnet18", "blocks": [1, 1]}, "blocks is .*4 stages"),
    ({"arch": "resnet18", "num_classes": 1}, "num_classes is 1: a classifier has at least 2"),
    ({"arch": "resnet18", "in_channels": 0}, "in_channels is 0"),
    ({"arch": "json:dumps"}, "json:dumps needs obj: give defaults where it is defined"),
    (
        {"arch": "unittest.mock:Mock"},
        "unittest.mock:Mock made a Mock: an architecture makes an nn.Module",
    ),
    ({"arch": "json:nothing"}, "cannot load architecture 'json:nothing'"),
]


@pytest.mark.parametrize(("asked", "message"), BAD, ids=lambda value: str(value)[:40])
def test_wrong_requests_are_refused_in_one_line(asked: dict[str, Any], message: str) -> None:
    sizes = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    with pytest.raises(UserError, match=message) as caught:
        build(**{**sizes, **asked})
    assert "\n" not in str(caught.value)


def test_the_short_form_of_a_wrapper() -> None:
    assert parse_wrapper("quantize", "layer1.0.conv1:8") == {"layer": "layer1.0.conv1", "levels": 8}
    for wrong in ("layer1", "layer1:", "a:b:c"):
        with pytest.raises(UserError, match="is not of the form LAYER:LEVELS"):
            parse_wrapper("quantize", wrong)
    for name, entry in wrappers().items():  # the fields of a short form are settings
        assert set(str(entry.about["form"]).lower().split(":")) <= set(settings_of(entry)), name
    with pytest.raises(UserError, match="unknown wrapper 'attend'"):
        parse_wrapper("attend", "a:1")
