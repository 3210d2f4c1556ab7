"""Specifications of networks from elsewhere, one by one, and their errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from advbench.checkpoint import load_model, save_weights, weights_sha256
from advbench.errors import UserError
from advbench.models import build, external
from advbench.models.external import listing

MODULE = """
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def sized(num_classes):
    torch.rand(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def optional(num_classes=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def broken():
    raise ValueError("no\\nweights")

def half():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half()

def number():
    return 3

class Rude(nn.Module):
    def forward(self, x):
        return {"logits": x}

constant = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder that defines networks."""
    name = f"networks_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_callable_in_the_current_folder(code: str) -> None:
    loaded = load_model(f"{code}:plain", dataset="digits")
    load_model(f"{code}:plain", dataset="digits")
    assert sys.path.count(os.getcwd()) == 1
    assert loaded.num_classes == 10 and not loaded.net.training and loaded.trained is None
    assert loaded.arch == f"{code}:plain" and loaded.notes == (f"{code}:plain ran its own code",)
    assert load_model(f"{code}:plain").num_classes == 10  # without a dataset: its last layer's outputs


def test_a_callable_may_take_num_classes_and_leaves_the_random_state_alone(code: str) -> None:
    before = torch.get_rng_state()
    assert load_model(f"{code}:sized", dataset="digits").num_classes == 10
    assert load_model(f"{code}:optional", dataset="digits").num_classes == 10
    assert load_model(f"{code}:optional").num_classes == 4
    assert torch.equal(torch.get_rng_state(), before)
    again = [load_model(f"{code}:sized", dataset="digits").weights_sha256 for _ in range(2)]
    assert again[0] == again[1]


def test_other_precisions_are_kept(code: str) -> None:
    loaded = load_model(f"{code}:half", dataset="digits")
    (dtype,) = {parameter.dtype for parameter in loaded.net.parameters()}
    assert dtype != torch.float32 and loaded.net(torch.rand(2, 1, 8, 8)).dtype == torch.float32
    assert loaded.notes[-1].startswith(f"the model takes {str(dtype).removeprefix('torch.')} images")


@pytest.mark.parametrize(
    ("attribute", "dataset", "message"),
    [
        ("nothing", "digits", "cannot load model .* has no attribute 'nothing'"),
        ("broken", "digits", "failed: ValueError: no weights"),
        ("number", "digits", "number is of type int: a model is a torch.nn.Module, a function of a batch"),
        ("constant", "digits", "is a int: a class or a function is needed"),
        ("sized", None, "needs num_classes: name the --dataset"),
        ("plain", "mnist", "does not take the 1x28x28 images of mnist"),
        ("plain", "cifar100", "does not take the 3x32x32 images of cifar100"),
        ("Rude", "digits", r"does not map images to logits \(B, classes\)"),
    ],
)
def test_unusable_callables_are_refused(code: str, attribute: str, dataset: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(f"{code}:{attribute}", dataset=dataset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "unknown model 'nowhere': there is no such folder or file; write a run folder, FILE"),
        ("", "'' names no model: write a run folder"),
        ("a\x1b[31mb.pt", r"names no model: write a run folder"),
        ("no_such_module_at_all:f", "cannot load model 'no_such_module_at_all:f': No module named"),
        ("nowhere.pt", "no file nowhere.pt"),
        ("runs/x/nowhere.safetensors", "no file runs/x/nowhere.safetensors"),
        ("robustbench:Carmon2019Unlabelled", "did you mean Carmon2019Unlabeled, .*advbench list models names all 206"),
        ("robustbench:cifar10/L1/Standard", "choose from robustbench:cifar10/Linf/Standard, "),
        ("robustbench:a/b/c/d", r"not of the form robustbench:\[DATASET/\[THREAT/\]\]NAME"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19': did you mean resnet1"),
        ("torchvision:resnet18:V3", "unknown weights of torchvision:resnet18 'V3': .*DEFAULT|IMAGENET1K_V1"),
        ("timm:resnet19", "unknown timm model 'resnet19': did you mean resnet1.*timm.list_models"),
        ("pyautoattack:other", "unknown model 'pyautoattack:other': .*choose from pyautoattack:model_test"),
    ],
)
def test_specifications_that_name_nothing(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_arch_is_for_weight_files_only() -> None:
    with pytest.raises(UserError, match="--arch is for weight files"):
        load_model("pyautoattack:model_test", arch="resnet18")


@pytest.mark.parametrize(("arch", "channels", "side"), [("lenet5", 1, 28), ("lenet5", 1, 8), ("mlp", 3, 32)])
def test_sizes_are_read_off_the_weights(arch: str, channels: int, side: int, tmp_path: Path) -> None:
    net = build(arch, num_classes=6, in_channels=channels, image_size=side, seed=0)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "x.pth")
    loaded = load_model(str(tmp_path / "x.pth"), arch=arch)
    assert loaded.num_classes == 6 and loaded.arch == arch
    assert loaded.weights_sha256 == weights_sha256(net)
    assert (loaded.net.in_channels, loaded.net.image_size) == (channels, side)


def test_a_callable_can_be_the_architecture_of_a_file(code: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(net.state_dict(), tmp_path / "x.pt")
    loaded = load_model(str(tmp_path / "x.pt"), arch=f"{code}:plain", dataset="digits")
    assert loaded.weights_sha256 == weights_sha256(net)
    assert loaded.notes == (f"{code}:plain ran its own code",)


def test_weights_that_fit_nothing(tmp_path: Path) -> None:
    net = build("lenet5", num_classes=10, in_channels=3, image_size=32, seed=0)
    torch.save(net.state_dict(), tmp_path / "x.pt")
    path = str(tmp_path / "x.pt")
    for arguments, message in (
        ({}, "does not say its architecture: pass --arch, one of conv_linear, lenet5, "),
        ({"arch": "lenet"}, "unknown architecture 'lenet': did you mean lenet5"),
        ({"arch": "resnet18"}, r"does not fit resnet18: .*missing keys \(conv1.weight|bn1.weight"),
        ({"arch": "lenet5", "dataset": "mnist"}, "takes images of 3 channels, mnist has 1x28x28"),
        ({"arch": "lenet5", "dataset": "cifar100"}, "has 10 classes, cifar100 has 100"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_model(path, **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_description_is_no_way_to_run_code(tmp_path: Path) -> None:
    import json

    import safetensors.torch

    tensors = {"w": torch.zeros(1)}
    about = {"arch": "os:system", "settings": {}, "num_classes": 2, "in_channels": 1, "image_size": 1, "wrappers": []}
    path = tmp_path / "x.safetensors"
    for text, message in (
        (json.dumps(about), "names the unknown architecture 'os:system'"),
        ("{", "has a faulty description of its architecture"),
        ("[]", "has a faulty description of its architecture"),
        (json.dumps({"arch": "lenet5"}), "has a faulty description of its architecture"),
        (json.dumps({**about, "arch": "lenet5", "settings": {"x": 1}}), "unknown setting of lenet5 'x'"),
    ):
        path.write_bytes(safetensors.torch.save(tensors, metadata={external.METADATA: text}))
        with pytest.raises(UserError, match=message):
            load_model(str(path))


def test_own_files_need_no_arch(tmp_path: Path) -> None:
    net = build("small_cnn", num_classes=10, in_channels=1, image_size=8, seed=0, activation="softplus")
    save_weights(net, tmp_path / "x.safetensors")
    loaded = load_model(str(tmp_path / "x.safetensors"), dataset="digits")
    assert loaded.arch == "small_cnn" and loaded.net.settings == {"activation": "softplus"}
    assert load_model(str(tmp_path / "x.safetensors")).num_classes == 10


def test_a_trusted_whole_module(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="--trust-pickle"):
        load_model(str(tmp_path / "x.pt"), dataset="digits")
    loaded = load_model(str(tmp_path / "x.pt"), dataset="digits", trust_pickle=True)
    assert loaded.arch == "Sequential" and "it may have run code" in loaded.notes[0]


def test_torchvision_with_random_weights_normalises_inside() -> None:
    from advbench.models.base import STATISTICS

    loaded = load_model("torchvision:mobilenet_v3_small:random")
    assert loaded.num_classes == 1000 and loaded.arch == "mobilenet_v3_small"
    assert loaded.notes == ("torchvision:mobilenet_v3_small has random weights",)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in STATISTICS["imagenet"])
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded.net(x), loaded.net.net((x - mean) / std), atol=1e-5)  # type: ignore[operator]
    with pytest.raises(UserError, match="has 1000 classes, cifar10 has 10"):
        load_model("torchvision:mobilenet_v3_small:random", dataset="cifar10")


def test_a_failed_download_says_what_to_place_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_settings: object) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(UserError) as caught:
        load_model("torchvision:mobilenet_v3_small:IMAGENET1K_V1")
    text = str(caught.value)
    assert "no network at all" in text and "place mobilenet_v3_small-047dcff4.pth in" in text
    assert str(tmp_path / "hub" / "checkpoints") in text


def test_timm_with_random_weights() -> None:
    loaded = load_model("timm:resnet10t:random")
    assert loaded.num_classes == 1000 and loaded.notes == ("timm:resnet10t has random weights",)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="need the package timm: pip install timm"):
        load_model("timm:resnet10t:random")


def test_the_listing_names_everything_without_torch() -> None:
    names = [row["name"] for row in listing()]
    assert len(names) == len(set(names))
    assert {"resnet18", "wrn-34-10", "quantize", "pyautoattack:model_test"} <= set(names)
    assert sum(name.startswith("robustbench:") for name in names) == 206
    assert all(row["kind"] and row["summary"] for row in listing())
    script = "import sys; from advbench.models.external import listing; listing(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@settings(max_examples=settings.default.max_examples * 4 // 5)
@given(
    prefix=st.sampled_from(["", "robustbench:", "pyautoattack:", "torchvision:", "timm:", "x/"]),
    text=st.text(max_size=400),
)
@example(prefix="", text="a" * 5000)
@example(prefix="", text="a\0b.pt")
@example(prefix="timm:", text="hf-hub:")
def test_any_text_is_refused_in_one_line(prefix: str, text: str) -> None:
    assume(not external._SPEC.fullmatch(text))  # would run code
    with pytest.raises(UserError) as caught:
        load_model(prefix + text)
    assert len(str(caught.value).splitlines()) == 1
