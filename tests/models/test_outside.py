"""Networks from outside the zoo as Models: what their makers receive, logits, features, maps, files."""

from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench import consent
from advbench.checkpoint import load_model, save_weights, weights_sha256
from advbench.errors import Untrusted, UserError
from advbench.models import build, describe, rebuild, wrap
from advbench.models.base import Model
from advbench.models.described import rebuild_for
from advbench.models.outside import Outside, stored

IMAGE = (1, 10, 6)
Pair = namedtuple("Pair", "logits aux")


class Net(nn.Module):
    """A convolution, a pooling, two linear layers; `width` is a setting."""

    def __init__(self, num_classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.fc1, self.fc2 = nn.Linear(width * 60, 7), nn.Linear(7, num_classes)

    def forward(self, x: Tensor) -> Any:
        return self.fc2(torch.relu(self.fc1(torch.relu(self.bn(self.conv(x))).flatten(1))))


class ConvHead(nn.Module):
    """Its last layer is a convolution."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.conv(x))).mean((2, 3))


class Recurrent(nn.Module):
    """Reads an image row by row."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(IMAGE[2], 6, batch_first=True), nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.lstm(x[:, 0])[0][:, -1])


class Ours(Model):
    """A Model of the user's own, which takes the settings of all Models."""

    def __init__(self, *, width: int = 5, **common: Any) -> None:
        super().__init__(**common)
        self.feature_dim = self.in_channels * self.shape[1] * self.shape[2]
        self.fc = nn.Linear(self.feature_dim, self.num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.normalise(x).flatten(1)

    def head(self, z: Tensor) -> Tensor:
        return self.fc(z)  # type: ignore[no-any-return]


class Answering(Net):
    """Returns `answer(logits)`."""

    answer: Any = staticmethod(lambda z: z)

    def forward(self, x: Tensor) -> Any:
        return self.answer(super().forward(x))


def answering(answer: Any) -> type[nn.Module]:
    return type("Given", (Answering,), {"answer": staticmethod(answer)})


class Greedy(Net):
    """Changes its input."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.mul_(2))


class Lazy(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.LazyLinear(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


SHARED = Net()
MAKERS: dict[str, Any] = {
    "Net": Net,
    "ConvHead": ConvHead,
    "Recurrent": Recurrent,
    "sequential": lambda num_classes: nn.Sequential(
        nn.Flatten(), nn.Linear(IMAGE[1] * IMAGE[2], 7), nn.ReLU(), nn.Linear(7, num_classes)
    ),
    "Ours": Ours,
    "Greedy": Greedy,
    "Lazy": Lazy,
    "shared": lambda: SHARED,
    "instance": SHARED,
    "any": lambda **_settings: Net(),
    "zoo": lambda: build("mlp", num_classes=3, in_channels=1, image_size=IMAGE[1:], normalize="half"),
    "double": lambda num_classes: Net(num_classes).double(),
    "ours": lambda **common: Ours(**common),
    "sized": lambda num_classes, in_channels, image_size: Net(num_classes, width=in_channels + image_size[0] - 10),
    "Named": answering(lambda z: Pair(z, z[:, :2])),
    "Mapping": answering(lambda z: {"logits": z, "aux": z}),
    "Only": answering(lambda z: (z, z.mean())),
    "Unclear": answering(lambda z: (z, z)),
    "Flat": answering(lambda z: z.flatten()),
    "One": answering(lambda z: z[:, :1]),
    "text": lambda: "no net",
}


@pytest.fixture(autouse=True)
def _nets(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("their_nets")
    for name, maker in MAKERS.items():
        setattr(module, name, maker)
    monkeypatch.setitem(sys.modules, "their_nets", module)


def make(name: str, classes: int = 3, *, seed: int | None = 0, **settings: Any) -> Model:
    return build(f"their_nets:{name}", num_classes=classes, in_channels=1, image_size=IMAGE[1:], seed=seed, **settings)


def some(n: int = 5) -> Tensor:
    return torch.rand(n, *IMAGE, generator=torch.Generator().manual_seed(1))


def test_the_net_itself_answers() -> None:
    net = make("Net", width=6).eval()
    assert isinstance(net, Outside) and net.net.conv.out_channels == 6
    x = some()
    assert torch.equal(net(x), net.net(x)) and net(x).shape == (5, 3)
    assert (net.arch, net.settings, net.shape) == ("their_nets:Net", {"width": 6}, IMAGE)
    assert weights_sha256(make("Net")) == weights_sha256(make("Net")) != weights_sha256(make("Net", seed=1))


@pytest.mark.parametrize("name", ["Ours", "ours"])
def test_a_model_of_ones_own_receives_everything(name: str) -> None:
    net = make(name, normalize=[[0.5], [0.25]])
    assert type(net) is Ours and torch.equal(net.normalise(some()), (some() - 0.5) / 0.25)


def test_a_maker_receives_the_sizes_that_it_names() -> None:
    assert make("sized").net.conv.out_channels == 1  # type: ignore[union-attr]
    assert make("Net", classes=8)(some()).shape == (5, 8)


def test_features_and_head_are_those_of_the_last_linear_layer() -> None:
    net = make("Net").eval()
    x = some()
    assert net.has_features and net.has_head and net.feature_dim == 7
    z, logits = net.features_and_logits(x)
    assert torch.equal(logits, net(x)) and torch.equal(z, net.features(x))
    torch.testing.assert_close(net.head(z), logits)
    before = [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in net.modules()]
    assert not any(before)


def test_a_named_layer_gives_the_features() -> None:
    net = make("Net", features="bn", maps="conv").eval()
    x = some()
    maps, z = net.maps_and_features(x)
    assert torch.equal(maps, net.net.conv(x)) and torch.equal(z, net.net.bn(maps).flatten(1))
    assert net.has_maps and net.feature_dim == 240 and not net.has_head
    with pytest.raises(UserError, match="does not compute its logits by a linear layer from its features"):
        net.head(z)
    with pytest.raises(UserError, match="attention needs a net whose logits are a linear layer of its features"):
        wrap(net, "attention")


def test_maps_are_tensors() -> None:
    with pytest.raises(UserError, match=r"model.maps: lstm gives a tuple, not 4-D maps"):
        make("Recurrent", maps="lstm").maps_and_features(some())


def test_a_failed_trial_leaves_the_modes_as_they_were() -> None:
    net = make("Net").train()
    net.net.conv = nn.Flatten()
    with pytest.raises(ValueError, match="4D"):
        assert net.feature_dim
    assert all(module.training for module in net.modules())


def test_without_a_last_linear_layer_the_features_have_to_be_named() -> None:
    net = make("ConvHead")
    assert not net.has_features and not net.has_head and not net.has_maps and net.feature_dim == 0
    with pytest.raises(UserError, match=r"set model.features=LAYER"):
        net.features(some())
    with pytest.raises(UserError, match=r"set model.maps=LAYER"):
        net.feature_maps(some())
    named = make("ConvHead", features="conv")
    assert named.feature_dim == 240 and named.features_and_logits(some())[1].shape == (5, 3)


def test_features_carry_gradients_to_the_image_and_the_weights() -> None:
    net, x = make("Net").train(), some().requires_grad_()
    z, logits = net.features_and_logits(x)
    (z.sum() + logits.sum()).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in net.parameters())


def test_finding_the_features_changes_nothing() -> None:
    net = make("Net").train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert net.feature_dim == 7
    assert torch.equal(torch.get_rng_state(), before) and all(layer.training for layer in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["Named", "Mapping", "Only"])
def test_logits_are_found_in_an_answer(name: str) -> None:
    net = make(name).eval()
    assert torch.equal(net(some()), Net.forward(net.net, some())) and net.feature_dim == 7


@pytest.mark.parametrize("name", ["Unclear", "Flat"])
def test_an_answer_without_logits_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"not logits \(B, 3\)|several tensors may be the logits"):
        make(name)(some())


def test_one_logit_means_two_classes() -> None:
    net = make("One", classes=2).eval()
    z = Net.forward(net.net, some())[:, :1]
    assert torch.equal(net(some()), torch.cat([torch.zeros_like(z), z], 1))
    with pytest.raises(UserError, match="not logits"):
        make("One", classes=3)(some())


def test_images_survive_a_net_that_writes_on_them() -> None:
    net, x = make("Greedy").eval(), some().requires_grad_()
    (g,) = torch.autograd.grad(net(x).sum(), x)
    assert torch.equal(x, some()) and g.abs().sum() > 0


def test_a_net_in_double_precision_is_used_in_fp32() -> None:
    assert all(weight.dtype is torch.float32 for weight in make("double").parameters())


def test_lazy_layers_get_their_shapes() -> None:
    assert make("Lazy")(some()).shape == (5, 3) and make("Lazy").feature_dim == 60


@pytest.mark.parametrize("name", ["shared", "instance"])
def test_every_net_is_a_copy(name: str) -> None:
    a, b = make(name), make(name)
    assert torch.equal(a.eval()(some()), SHARED.eval()(some()))
    assert stored(a).conv.weight is not stored(b).conv.weight is not SHARED.conv.weight


@pytest.mark.parametrize("name", ["Net", "any", "instance"])
def test_normalisation_is_a_setting_of_the_model(name: str) -> None:
    net = make(name, normalize=[[0.5], [0.25]]).eval()
    assert torch.equal(net(some()), net.net((some() - 0.5) / 0.25))
    assert weights_sha256(net) != weights_sha256(make(name))
    assert "mean" not in net.state_dict()


def test_the_weights_are_those_of_the_net_itself() -> None:
    net = make("Net")
    assert weights_sha256(net) == weights_sha256(stored(net))


@pytest.mark.parametrize("settings", [{}, {"normalize": [[0.5], [0.25]], "features": "fc1", "width": 5}])
def test_saved_with_the_keys_of_the_net_and_loaded_again(settings: dict[str, Any], tmp_path: Path) -> None:
    net, file = make("Net", seed=4, **settings), tmp_path / "x.safetensors"
    save_weights(net, file)
    assert weights_sha256(rebuild(describe(net), seed=4)) == weights_sha256(net)
    loaded = load_model(str(file), arch="their_nets:Net")  # the file knows the settings
    assert loaded.weights_sha256 == weights_sha256(net) and loaded.net.settings == settings
    from safetensors.torch import load_file

    Net(width=settings.get("width", 4)).load_state_dict(load_file(file))  # as without advbench
    with pytest.raises(UserError, match="names the unknown architecture 'their_nets:Net': pass --arch"):
        load_model(str(file))


def test_a_wrapper_around_a_net_from_outside() -> None:
    net = wrap(make("Net"), "quantize", layer="net.conv", levels=4).eval()
    again = rebuild(describe(net), seed=0).eval()
    assert torch.equal(again(some()), net(some())) and net.features_and_logits(some())[0].shape == (5, 7)
    focused = wrap(make("Net", maps="bn"), "attention", width=3)
    assert focused(some()).shape == (5, 3)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("Net", {"features": "cnov"}, "unknown layer 'cnov': did you mean conv"),
    ("Net", {"hight": 3}, "unknown setting of their_nets:Net 'hight'"),
    ("Net", {"width": "x"}, "their_nets:Net failed: TypeError"),
    ("Net", {"normalize": [[0.5] * 3, [1.0] * 3]}, "for 1 channels write"),
    ("zoo", {"normalize": "half"}, "their_nets:zoo normalises its images itself: leave out --mean"),
    ("text", {}, "their_nets:text made a str: an architecture makes an nn.Module"),
    ("Nte", {}, "cannot load architecture 'their_nets:Nte'"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD)
def test_wrong_requests_are_refused_in_one_line(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:googlenet"])
def test_torchvision(arch: str) -> None:
    net = build(arch, num_classes=4, in_channels=1, image_size=(48, 40), seed=0).train()
    x = torch.rand(2, 1, 48, 40)
    assert net(x).shape == (2, 4)
    torch.testing.assert_close(net.eval()(x), net.eval()(x.clone()))
    assert net.has_features == ("squeezenet" not in arch)
    with pytest.raises(UserError, match="takes images of 3 channels, or grey ones, not of 2"):
        build(arch, num_classes=4, in_channels=2, image_size=48)


def test_timm() -> None:
    pytest.importorskip("timm")
    net = build("timm:resnet18", num_classes=4, in_channels=3, image_size=32, seed=0).eval()
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 4) and net.feature_dim == 512
    vit = build("timm:vit_tiny_patch16_224", num_classes=4, in_channels=3, image_size=32, img_size=32, depth=1)
    assert vit(torch.rand(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("torchvision:resnet19", "unknown torchvision model 'resnet19': did you mean resnet18"),
        ("torchvision:", "unknown torchvision model ''"),
        ("resnet19", "unknown architecture 'resnet19': .* or write torchvision:NAME, timm:NAME or package"),
    ],
)
def test_unknown_names(arch: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(arch, num_classes=4, in_channels=3, image_size=32)


def test_a_torchvision_architecture_of_a_file(tmp_path: Path) -> None:
    net = build("torchvision:resnet18", num_classes=10, in_channels=3, image_size=32, seed=2)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in stored(net).state_dict().items()}}, tmp_path / "x.pt"
    )
    loaded = load_model(str(tmp_path / "x.pt"), arch="torchvision:resnet18", dataset="cifar10")
    assert loaded.num_classes == 10 and not loaded.notes
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.net(x), net.eval()(x))
    save_weights(net, tmp_path / "x.safetensors")
    assert load_model(str(tmp_path / "x.safetensors")).num_classes == 10  # the library is no code of a stranger
    with pytest.raises(UserError, match=r"does not fit torchvision:resnet34: .*missing keys"):
        load_model(str(tmp_path / "x.pt"), arch="torchvision:resnet34", dataset="cifar10")


def test_a_file_cannot_ask_for_more_than_it_holds() -> None:
    about = {**describe(build("torchvision:resnet18", num_classes=4, in_channels=3, image_size=32)), "arch": "x"}
    for arch in ("torchvision:vit_h_14", "timm:vit_giant_patch14_224"):
        if arch.startswith("timm"):
            pytest.importorskip("timm")
        with pytest.raises(UserError, match="larger than what the file holds"):
            rebuild_for({"w": torch.zeros(9)}, {**about, "arch": arch}, "x.safetensors")


def test_code_that_only_a_file_names_does_not_run() -> None:
    about = describe(make("Net"))
    with consent.Consent(named=frozenset(), file="x").given(), pytest.raises(Untrusted, match="--arch their_nets:Net"):
        rebuild_for(make("Net").state_dict(), about, "x")


def test_a_layer_whose_name_is_a_number() -> None:
    net = build("their_nets:sequential", num_classes=3, in_channels=1, image_size=IMAGE[1:], seed=0, features=0)
    assert net.feature_dim == IMAGE[1] * IMAGE[2]
    other = build("their_nets:sequential", num_classes=3, in_channels=1, image_size=IMAGE[1:], seed=0, features=1)
    assert other.feature_dim == 7
