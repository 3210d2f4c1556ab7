"""Training of networks from outside the zoo, on images of any shape; initial weights; more epochs; refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from advbench.checkpoint import load_model, read_card
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import Interrupted, UserError
from advbench.methods.base import make
from advbench.recipe import Recipe, differences
from advbench.registry import entries
from advbench.trainer import Began, Watch, estimate, prepare, train
from advbench.trainer.session import Session

Make = Callable[..., Recipe]
TINY = "tiny_arch:Tiny"


class Plain(nn.Module):
    """As people write it: a convolution, BatchNorm, an unused layer, a linear one."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.conv, self.bn = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


class Smooth(Plain):
    """Its gradients can be differentiated."""

    def forward(self, x: Tensor) -> Any:
        return self.fc(nn.functional.softplus(self.bn(self.conv(x))).mean((2, 3)))


class Used(nn.Module):
    """Every weight is used."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(60, num_classes)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x.flatten(1))


class Wide(Plain):
    def forward(self, x: Tensor) -> Any:
        if x.shape[1] != 3:
            raise ValueError("I want colour")
        return x


class Cut(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.detach())


class Late(Plain):
    """Fails at its third pass in train mode."""

    calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += self.training
        if self.calls > 2:
            raise KeyError("tired")
        return super().forward(x)


def scripted() -> nn.Module:
    net = Empty()
    net.part = torch.jit.ScriptModule()  # type: ignore[no-untyped-call]
    return net


class Empty(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.flatten(1)[:, :2]


@pytest.fixture(autouse=True)
def _nets(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_nets")
    for net in (Plain, Smooth, Used, Wide, Cut, Late, Empty):
        setattr(module, net.__name__, net)
    module.ten = lambda: Plain(10)  # type: ignore[attr-defined]
    module.scripted = scripted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_nets", module)


@pytest.fixture
def oblong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits 0 and 1 in images of 10 x 6."""

    def images(name: str, split: str, **_how: Any) -> Dataset:
        digits = load("digits", split)
        rows = (digits.labels < 2).nonzero()[:, 0]
        chosen = digits.subset(rows)
        cut = nn.functional.pad(chosen.images[:, :, :, 1:7], (0, 0, 1, 1))
        return replace(chosen, images=cut, num_classes=2, name="oblong", indices=torch.arange(len(rows)))

    monkeypatch.setattr(prepare, "load", images)


SHORT = ["epochs=1", "train_n=60", "batch_size=16", "augment.crop=1", "augment.flip=true", "augment.cutout=2"]
TASKS = ["method.tasks=jigsaw,autoencoder"]
MORE = {"multi-task": TASKS, "multi-task-at": TASKS, "feature-prioritization": ["model.maps=bn"]}


@pytest.mark.parametrize("method", sorted(entries("methods")))
def test_every_method_trains_a_plain_net_on_oblong_images_of_two_classes(
    recipe: Make, oblong: None, tmp_path: Path, method: str
) -> None:
    net = {"great": "Smooth", "learned-optimizer": "Used"}.get(method, "Plain")
    made = recipe(method, *SHORT, *MORE.get(method, ()), arch=f"own_nets:{net}")
    out = train(made, tmp_path / "run", device="cpu")
    card = read_card(out)
    assert card.finished and card.model.image_size == (10, 6) and card.model.num_classes == 2
    assert card.cost["forwards"] > 0  # type: ignore[operator]
    loaded = load_model(str(out), arch=f"own_nets:{net}").net
    assert loaded(torch.rand(3, 1, 10, 6)).shape == (3, 2)


@pytest.mark.parametrize("arch", ["mlp", "small_cnn", "lenet5", "resnet18"])
def test_the_zoo_trains_on_oblong_images(recipe: Make, oblong: None, tmp_path: Path, arch: str) -> None:
    small = ["model.width=4"] if arch in ("mlp", "resnet18") else []
    out = train(recipe("act", *SHORT, *small, arch=arch), tmp_path / "run", device="cpu")
    loaded = load_model(str(out))
    assert loaded.net.shape == (1, 10, 6) and loaded.net(torch.rand(2, 1, 10, 6)).shape == (2, 2)
    state = load_file(out / "model.safetensors")
    torch.save(state, tmp_path / "w.pt")
    assert estimate(recipe("pgd-at", *SHORT, *small, f"init={tmp_path / 'w.pt'}", arch=arch), device="cpu").epochs == 1


def test_a_plain_net_resumes_to_the_bit(recipe: Make, tmp_path: Path) -> None:
    class Stop(Watch):
        steps = 0

        def stop(self) -> bool:
            self.steps += 1
            return self.steps == 4

    made = recipe("trades", "average.name=ema", arch="own_nets:Plain")
    train(made, tmp_path / "whole", device="cpu")
    with pytest.raises(Interrupted):
        train(made, tmp_path / "pieces", device="cpu", watch=Stop())
    train(made, tmp_path / "pieces", device="cpu", resume=True)
    for file in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "pieces" / file).read_bytes()


@pytest.mark.parametrize(
    ("arch", "method", "message"),
    [
        ("own_nets:Wide", "pgd-at", "own_nets:Wide cannot be trained on 1x8x8 images: ValueError: I want colour"),
        ("own_nets:Cut", "pgd-at", "own_nets:Cut gives no gradient with respect to the image"),
        ("own_nets:scripted", "pgd-at", "own_nets:scripted is TorchScript, which is not trained: name the class"),
        ("own_nets:Empty", "pgd-at", "own_nets:Empty has no weights to train"),
        ("own_nets:Plain", "feature-prioritization", "own_nets:Plain has no feature maps: set model.maps=LAYER"),
        ("own_nets:Smooth", "pgd-at", ""),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    recipe: Make, tmp_path: Path, arch: str, method: str, message: str
) -> None:
    if not message:
        train(recipe(method, "epochs=1", arch=arch), tmp_path / "run", device="cpu")
        return
    with pytest.raises(UserError, match=message) as caught:
        train(recipe(method, arch=arch), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_other_numbers_of_classes_are_refused(recipe: Make, oblong: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own_nets:ten returns \(16, 10\), not logits \(B, 2\)"):
        train(recipe("pgd-at", *SHORT, arch="own_nets:ten"), tmp_path / "run", device="cpu")


def test_a_batch_of_one_image_is_refused(recipe: Make, tmp_path: Path) -> None:
    class PerImage(Plain):
        def forward(self, x: Tensor) -> Any:
            return self.fc(self.bn(self.conv(x).mean((2, 3), keepdim=True))[:, :, 0, 0])

    sys.modules["own_nets"].PerImage = PerImage  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="on one image at a time: set batch_size to 2 or more: ValueError"):
        train(recipe("pgd-at", "batch_size=1", arch="own_nets:PerImage"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_a_net_that_fails_later_ends_in_one_line(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="own_nets:Late failed in training: KeyError: 'tired'"):
        train(recipe("standard", arch="own_nets:Late"), tmp_path / "run", device="cpu")


def started(made: Recipe) -> tuple[dict[str, Tensor], list[str]]:
    session = Session(made, torch.device("cpu"))
    return {name: value.clone() for name, value in session.nets.f.state_dict().items()}, session.notes


def test_initial_weights(recipe: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, file = Plain(), tmp_path / "w.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, file)
    made = recipe("pgd-at", f"init={file}", "average.name=ema", arch="own_nets:Plain")
    state, notes = started(made)
    assert all(torch.equal(value, state[f"net.{key}"]) for key, value in theirs.state_dict().items()) and not notes
    assert Recipe.read(made.tree()) == made and made.sha256 != recipe("pgd-at", "average.name=ema").sha256
    out = train(made, tmp_path / "run", device="cpu")
    again, _ = started(recipe("pgd-at", f"init={out}", arch="own_nets:Plain"))  # a run: its best weights
    best = load_file(out / "model.safetensors")
    assert all(torch.equal(value, again[f"net.{key}"]) for key, value in best.items())

    copied = tmp_path / "other name.pt"
    copied.write_bytes(file.read_bytes())
    assert not differences(made, recipe("pgd-at", f"init={copied}", "average.name=ema", arch="own_nets:Plain"))
    torch.save(Plain().state_dict(), file)
    with pytest.raises(UserError, match=r"w.pt is no longer the file that the recipe starts from"):
        started(made)
    changed = recipe("pgd-at", f"init={file}", "average.name=ema", arch="own_nets:Plain")
    with pytest.raises(UserError, match=r"another recipe \(init.sha256"):
        train(changed, out, device="cpu", resume=True)


def test_a_last_layer_for_other_classes_is_new(recipe: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = Plain(num_classes=7)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    made = recipe("pgd-at", f"init={tmp_path / 'w.safetensors'}", arch="own_nets:Plain")
    state, notes = started(made)
    new, _ = started(recipe("pgd-at", arch="own_nets:Plain"))
    assert torch.equal(state["net.conv.weight"], theirs.conv.weight)
    assert torch.equal(state["net.fc.weight"], new["net.fc.weight"])
    assert notes == [f"{tmp_path / 'w.safetensors'} has 7 classes: the layer fc starts from new weights"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "conv.weight": torch.zeros(5, 1, 3, 3)}, "1 of another shape .conv.weight"),
        (lambda state: {key: state[key] for key in ("fc.weight", "fc.bias")}, "missing keys"),
        (lambda state: {**state, "fc.bias": torch.full((10,), torch.nan)}, "weights that are NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    recipe: Make, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    save_file(change(dict(Plain().state_dict())), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message):
        train(
            recipe("pgd-at", f"init={tmp_path / 'w.safetensors'}", arch="own_nets:Plain"),
            tmp_path / "run",
            device="cpu",
        )
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_missing_weights(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="init: there is no weights file"):
        recipe("pgd-at", f"init={tmp_path / 'none.pt'}")


CONSTANT = ["schedule.name=constant", "average.name=none"]


@pytest.mark.parametrize("arch", ["own_nets:Plain", "mlp"])
def test_more_epochs_are_those_of_a_longer_run(recipe: Make, tmp_path: Path, arch: str) -> None:
    def of(epochs: int) -> Recipe:
        return recipe("pgd-at", *CONSTANT, f"epochs={epochs}", arch=arch)

    train(of(3), tmp_path / "long", device="cpu")
    out = train(of(1), tmp_path / "grown", device="cpu", name="mine")
    assert read_card(out).finished
    train(of(3), out, device="cpu", resume=True)
    card = read_card(out)
    assert card.finished and card.results["epochs"] == 3 and card.name == "mine"
    assert card.recipe_sha256 == read_card(tmp_path / "long").recipe_sha256 == Recipe.load(out / "recipe.toml").sha256
    for file in ("model.safetensors", "last.safetensors"):
        assert (out / file).read_bytes() == (tmp_path / "long" / file).read_bytes()
    with pytest.raises(UserError, match=r"another recipe \(epochs 3 -> 1\)"):
        train(of(1), out, device="cpu", resume=True)


def test_a_run_stopped_while_it_is_trained_on_is_not_finished(recipe: Make, tmp_path: Path) -> None:
    class Stop(Watch):
        def stop(self) -> bool:
            return True

    short, longer = (recipe("pgd-at", *CONSTANT, f"epochs={n}") for n in (1, 2))
    out = train(short, tmp_path / "run", device="cpu")
    with pytest.raises(Interrupted):
        train(longer, out, device="cpu", resume=True, watch=Stop())
    card = read_card(out)
    assert not card.finished and load_model(str(out), arch=TINY).weights_sha256  # the best weights are still there
    train(longer, out, device="cpu", resume=True)
    assert read_card(out).finished and read_card(out).results["epochs"] == 2


@pytest.mark.parametrize(
    ("method", "setting", "why"),
    [
        ("pgd-at", "schedule.name=onecycle", "schedule.name=onecycle"),
        ("pgd-at", "schedule.warmup=0.5", "schedule.warmup"),
        ("pgd-at", "inner.warmup=0.5", "inner.warmup"),
        ("pgd-at", "average.name=ema", "average.start"),
        ("act", "method.b_warmup=0.5", "method act"),
    ],
)
def test_what_depends_on_the_number_of_epochs_cannot_be_trained_on(
    recipe: Make, tmp_path: Path, method: str, setting: str, why: str
) -> None:
    short, longer = (recipe(method, "schedule.name=constant", f"epochs={n}", setting, arch="mlp") for n in (1, 2))
    out = train(short, tmp_path / "run", device="cpu")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=f"cannot go on to 2 epochs: .*{why} .*--init {out}"):
        train(longer, out, device="cpu", resume=True)
    assert all(file.read_bytes() == content for file, content in before.items())


def test_without_its_state_a_finished_run_cannot_be_trained_on(recipe: Make, tmp_path: Path) -> None:
    import shutil

    short, longer = (recipe("pgd-at", *CONSTANT, f"epochs={n}", arch="mlp") for n in (1, 2))
    out = train(short, tmp_path / "run", device="cpu")
    shutil.rmtree(out / "train_state")
    assert train(short, out, device="cpu", resume=True) == out
    with pytest.raises(UserError, match=r"state\.bin is missing; start a new run from its weights with --init"):
        train(longer, out, device="cpu", resume=True)
    assert read_card(out).finished


def test_the_start_of_a_run_says_what_is_held_out_and_what_is_noted(recipe: Make, tmp_path: Path) -> None:
    class Listen(Watch):
        began: Began

        def on_begin(self, event: Began) -> None:
            self.began = event

    watch = Listen()
    train(recipe("standard", "epochs=1", "batch_size=8", "train_n=20", arch="torchvision:shufflenet_v2_x0_5"),
          tmp_path / "run", device="cpu", watch=watch)  # fmt: skip
    assert (watch.began.train_images, watch.began.validation_images) == (16, 4)
    assert watch.began.notes == ("torchvision:shufflenet_v2_x0_5 receives the grey images' channel 3 times",)


def test_methods_say_what_they_need(recipe: Make) -> None:
    needs = {name: make(recipe(name)).needs for name in entries("methods")}
    features = {"center-loss", "center-loss-at", "compactness", "compactness-trades", "multi-task", "multi-task-at"}
    wanted = dict.fromkeys(features, ("features",)) | {"feature-prioritization": ("features", "head")}
    assert {name: what for name, what in needs.items() if what} == wanted
    assert make(recipe("great", "method.form=multi-task")).needs == ("features", "head")
