"""Pickles, and code that a file names, run only with consent: each form of specification with something planted."""

from __future__ import annotations

import ast
import io
import itertools
import json
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import advbench
from advbench.checkpoint import read_card, write_card
from advbench.models import build

# A module that leaves a trace when it is imported. It holds one of each kind.
MODULE = """
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from advbench.data import load
from advbench.methods.pgd_at import PGDAT
from advbench.models.linear import Linear

Path("marker").touch()

class Net(Linear):
    pass

class Method(PGDAT):
    pass

def model(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def images(split):
    return replace(load("digits", split), name=f"{__name__}:images")

def attack(model, x, y, eps):
    return x
"""
SHORT = ["--epochs", "1", "--set", "train_n=64", "--set", "validation.n=16"]
FEW = ["--eps", "0.1", "-n", "8", "--attack", "fgsm"]
numbers = itertools.count()


class Planted:
    """Unpickling one makes the file `marker`, and gives `value`."""

    def __init__(self, value: str = "0") -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('pathlib').Path('marker').touch() or {self.value}",)


@dataclass(frozen=True)
class Trap:
    """A command line in a folder of its own, the marker there, and `module`, the name of the planted module."""

    cli: Any
    module: str
    patch: pytest.MonkeyPatch

    def __call__(self, *argv: object) -> Any:
        """Run a command line without what an earlier one imported."""
        sys.modules.pop(self.module, None)
        return self.cli(*argv)

    @property
    def sprung(self) -> bool:
        """Whether the planted code ran since this was last asked."""
        marker = self.cli.folder / "marker"
        ran = marker.exists()
        marker.unlink(missing_ok=True)
        return bool(ran)

    def train(self, out: str, *argv: object) -> None:
        ran = self(
            "train", "--method", "standard", "--dataset", "digits", "--arch", "linear", *SHORT, "--out", out, *argv
        )
        assert ran.code == 0, ran.err
        assert self.sprung == any(self.module in str(word) for word in argv)

    def record(self, *argv: object) -> str:
        """The path of the record that this evaluation makes."""
        ran = self("evaluate", *FEW[:4], *argv, "--json")
        assert ran.code == 0, ran.err
        assert self.sprung == any(self.module in str(word) for word in argv)
        return str(json.loads(ran.out)["path"])

    def file(self, name: str, text: str) -> str:
        Path(name).write_text(text)
        return name


@pytest.fixture
def trap(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = f"theirs_{next(numbers)}"
    (cli.folder / f"{module}.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield Trap(cli, module, monkeypatch)
    sys.modules.pop(module, None)


def after(_made: object, *argv: object) -> list[object]:
    """The command line `argv`, which needs what was made before it."""
    return [*argv]


# Pickles


def state() -> dict[str, Any]:
    return dict(build("linear", num_classes=10, in_channels=1, image_size=8, seed=0).state_dict())


def weights(_trap: Trap) -> str:
    """A weight file of `linear` for digits that needs code."""
    torch.save({"state_dict": state(), "args": Planted()}, "evil.pt")
    return "evil.pt"


def whole(_trap: Trap) -> str:
    """A module for digits that is pickled whole."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net.about = Planted()  # type: ignore[assignment]
    torch.save(net, "evil.pt")
    return "evil.pt"


def cached(trap: Trap, file: str, planted: Any) -> None:
    """Put `planted` under the name `file` into the cache of PyTorch's hub."""
    trap.patch.setenv("TORCH_HOME", str(trap.cli.folder / "torch"))
    folder = trap.cli.folder / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(planted, folder / file)


def torchvision(trap: Trap) -> list[object]:
    cached(trap, "squeezenet1_1-b8a52dc0.pth", {"x": Planted()})
    return ["evaluate", "--model", "torchvision:squeezenet1_1", "--dataset", "digits"]


def torchvision_tar(trap: Trap) -> list[object]:
    """In the oldest format, a tar archive, which is never read as tensors only."""
    cached(trap, "squeezenet1_1-b8a52dc0.pth", {})
    with tarfile.open(trap.cli.folder / "torch/hub/checkpoints/squeezenet1_1-b8a52dc0.pth", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Planted())
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return ["evaluate", "--model", "torchvision:squeezenet1_1", "--dataset", "digits"]


def timm(trap: Trap) -> list[object]:
    cached(trap, "seresnet18-4bb0ce65.pth", {"x": Planted()})
    return ["evaluate", "--model", "timm:legacy_seresnet18", "--dataset", "digits"]


def robustbench(trap: Trap, name: str = "Sehwag2021Proxy_R18") -> list[object]:
    trap.patch.setenv("ADVBENCH_DATA", str(trap.cli.folder / "data"))
    folder = trap.cli.folder / "data" / "models" / "robustbench" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    torch.save({"state_dict": {}, "args": Planted()}, folder / f"{name}.pt")
    return ["evaluate", "--model", f"robustbench:cifar10/Linf/{name}", "--dataset", "digits"]


def explained(trap: Trap) -> list[object]:
    """A record of an honest file, which another one replaced."""
    torch.save(state(), "evil.pt")
    record = trap.record("--attack", "fgsm", "--model", "evil.pt", "--arch", "linear", "--dataset", "digits")
    weights(trap)
    return ["compare", "--explain", record]


PICKLES: dict[str, Callable[[Trap], list[object]]] = {
    "evaluate file": lambda trap: [
        "evaluate",
        "--model",
        weights(trap),
        "--arch",
        "linear",
        "--dataset",
        "digits",
        *FEW,
    ],
    "attack file": lambda trap: ["attack", "--model", whole(trap), "--dataset", "digits", "-n", "4", "--eps", "0.1"],
    "torchvision": torchvision,
    "torchvision tar": torchvision_tar,
    "timm": timm,
    "robustbench": robustbench,
    "robustbench timm": lambda trap: robustbench(trap, "Debenedetti2022Light_XCiT-S12"),
    "teacher": lambda trap: [
        *("train", "--method", "great", "--dataset", "digits", "--arch", "linear", *SHORT, "--out", "runs/b"),
        *("--set", "method.form=distillation", "--set", f"method.teacher={whole(trap)}"),
    ],
    "transfer source": lambda trap: after(
        trap.train("runs/a"),
        *("evaluate", *FEW[:4], "--attack", "transfer", "--set", f"source={whole(trap)}", "--set", "steps=2"),
    ),
    "explain": explained,
    "again": lambda trap: ["evaluate", "--again", explained(trap)[-1]],
}
WITHOUT_WEIGHTS = ("torchvision", "timm", "robustbench")  # what is planted there is no network's state


@pytest.mark.parametrize("form", PICKLES)
def test_a_pickle_needs_consent(form: str, trap: Trap) -> None:
    argv = PICKLES[form](trap)
    assert not trap.sprung
    before = trap.cli.files()
    ran = trap(*argv)
    assert ran.code == 2 and ran.err.count("\n") == 1, ran.err
    assert "is a pickle that needs more than tensors" in ran.err and "pass --trust-pickle" in ran.err
    assert any(name in ran.err for name in ("evil.pt", ".pth", "Sehwag2021Proxy_R18.pt", "XCiT-S12.pt"))
    assert not trap.sprung and trap.cli.files() == before
    assert trap(*argv, "--trust-code").code == 2 and not trap.sprung  # another consent
    trusted = trap(*argv, "--trust-pickle")
    assert trap.sprung and "--trust-pickle" not in trusted.err
    assert (trusted.code == 0) != form.startswith(WITHOUT_WEIGHTS), trusted.err


def test_honest_files_need_no_consent(trap: Trap) -> None:
    torch.save(build("linear", num_classes=10, in_channels=1, image_size=8, seed=0).state_dict(), "good.pt")
    assert trap("evaluate", "--model", "good.pt", "--arch", "linear", "--dataset", "digits", *FEW).code == 0
    from torchvision.models import squeezenet1_1

    cached(trap, "squeezenet1_1-b8a52dc0.pth", squeezenet1_1().state_dict())
    ran = trap("evaluate", "--model", "torchvision:squeezenet1_1", "--dataset", "digits")
    assert ran.code == 2 and "does not take the 1x8x8 images of digits" in ran.err  # it was loaded


def test_a_published_file_that_was_replaced_is_not_opened(trap: Trap) -> None:
    """pyautoattack's network is loaded by its hash, so nobody has to consent."""
    import pyautoattack

    folder = trap.cli.folder / "pyautoattack"
    shutil.copytree(Path(pyautoattack.__file__).parent, folder)
    torch.save({"x": Planted()}, folder / "examples" / "model_test.pt")
    trap.patch.setattr("importlib.util.find_spec", lambda _name: pyautoattack.__spec__)
    trap.patch.setattr(pyautoattack.__spec__, "origin", str(folder / "__init__.py"))
    ran = trap("evaluate", "--model", "pyautoattack:model_test", "--dataset", "cifar10", "--trust-pickle")
    assert ran.code == 2 and not trap.sprung


def test_nothing_else_unpickles() -> None:
    """torch.load reads only tensors everywhere but in one place; processes of one evaluation trust each other."""
    package = Path(advbench.__file__).parent
    for file in package.rglob("*.py"):
        name = file.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), name
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pickle.load", "pickle.loads"):
                assert name in ("evaluator/parallel/processes.py", "evaluator/parallel/worker.py"), name


# Code


def folder(trap: Trap, **changes: Any) -> str:
    """A run folder that names the planted code as its architecture, or in `changes` of its card."""
    if changes:
        trap.train("runs/a")
        card = read_card(Path("runs/a"))
        write_card(Path("runs/a"), card.model_copy(update=changes))
    else:
        trap.train("runs/a", "--arch", f"{trap.module}:Net")
    return "runs/a"


def recipe(trap: Trap, text: str) -> list[object]:
    """A training by a recipe that names the planted code."""
    found = trap.file("recipe.toml", text.replace("theirs", trap.module))
    return ["train", "--config", found, *SHORT, "--out", "runs/b", "--device", "cpu"]


def flags(trap: Trap, text: str) -> str:
    return trap.file("flags.toml", text.replace("theirs", trap.module))


def with_source(trap: Trap) -> list[object]:
    """An attack with the gradients of a run that names the planted code."""
    folder(trap)
    trap.train("runs/b")
    return [
        "evaluate",
        "--model",
        "runs/b",
        *FEW[:4],
        "--attack",
        "transfer",
        "--set",
        "source=runs/a",
        "--set",
        "steps=2",
    ]


def of_method(trap: Trap) -> list[object]:
    """A run whose recipe names the method."""
    trap.train("runs/a", "--method", f"{trap.module}:Method")
    return ["analyze", "filters", "runs/a"]


def of(*argv: str) -> Callable[[Trap], str]:
    """The record of an evaluation that names the planted code."""

    def made(trap: Trap) -> str:
        if "--model" not in argv:
            trap.train("runs/a")
        return trap.record(*(word.replace("theirs", trap.module) for word in argv))

    return made


MODEL = of("--attack", "fgsm", "--model", "theirs:model", "--dataset", "digits")
IMAGES = of("--attack", "fgsm", "--dataset", "theirs:images")
SOURCE = of("--attack", "transfer", "--set", "source=theirs:model", "--set", "steps=2")
DISTILLED = ["--set", "method.form=distillation"]

# For each form, the command line, and the words that name the code again.
CODE: dict[str, tuple[Callable[[Trap], list[object]], list[str]]] = {
    "run folder": (lambda trap: ["evaluate", "--model", folder(trap), *FEW], ["--arch", "theirs:Net"]),
    "newest run": (lambda trap: after(folder(trap), "attack", "--eps", "0.1", "-n", "4"), ["--arch", "theirs:Net"]),
    "a file of a run": (
        lambda trap: ["evaluate", "--model", f"{folder(trap)}/last.safetensors", *FEW],
        ["--arch", "theirs:Net"],
    ),
    "images of a run": (
        lambda trap: ["evaluate", "--model", folder(trap, dataset=f"{trap.module}:images"), *FEW],
        ["--dataset", "theirs:images"],
    ),
    "analyze": (lambda trap: ["analyze", "filters", folder(trap)], []),
    "analyze method": (of_method, []),
    "teacher": (
        lambda trap: [
            *("train", "--method", "great", "--dataset", "digits", "--arch", "linear", *SHORT, "--out", "runs/b"),
            *(*DISTILLED, "--set", f"method.teacher={folder(trap)}"),
        ],
        [],
    ),
    "transfer source": (with_source, []),
    "recipe arch": (lambda trap: recipe(trap, 'model.arch = "theirs:Net"'), ["--arch", "theirs:Net"]),
    "recipe method": (lambda trap: recipe(trap, 'method.name = "theirs:Method"'), ["--method", "theirs:Method"]),
    "recipe dataset": (
        lambda trap: recipe(trap, 'dataset = "theirs:images"\nmodel.arch = "linear"'),
        ["--dataset", "theirs:images"],
    ),
    "recipe teacher": (
        lambda trap: recipe(
            trap,
            'model.arch = "linear"\n[method]\nname = "great"\nform = "distillation"\nteacher = "theirs:model"',
        ),
        ["--set", "method.teacher=theirs:model"],
    ),
    "config model": (
        lambda trap: ["evaluate", "--config", flags(trap, 'model = ["theirs:model"]'), "--dataset", "digits", *FEW],
        ["--model", "theirs:model"],
    ),
    "config attack": (
        lambda trap: after(
            trap.train("runs/a"), "attack", "--config", flags(trap, 'attack = "theirs:attack"'), "-n", "4"
        ),
        ["--attack", "theirs:attack"],
    ),
    "config set beside --set": (
        lambda trap: [
            *after(trap.train("runs/a"), "evaluate", "--model", "runs/a", "--attack", "transfer", "--eps", "0.1"),
            *("-n", "4", "--config", flags(trap, '[set]\nsource = "theirs:model"'), "--set", "steps=1"),
        ],
        ["--set", "source=theirs:model"],
    ),
    "again model": (lambda trap: ["evaluate", "--again", MODEL(trap)], ["--model", "theirs:model"]),
    "again attack": (
        lambda trap: ["evaluate", "--again", of("--attack", "theirs:attack")(trap)],
        ["--attack", "theirs:attack"],
    ),
    "again images": (lambda trap: ["evaluate", "--again", IMAGES(trap)], ["--dataset", "theirs:images"]),
    "again source": (lambda trap: ["evaluate", "--again", SOURCE(trap)], []),
    "explain model": (lambda trap: ["compare", "--explain", MODEL(trap)], []),
    "explain images": (lambda trap: ["compare", "--explain", IMAGES(trap)], []),
}


@pytest.mark.parametrize("form", CODE)
def test_code_that_only_a_file_names_needs_consent(form: str, trap: Trap) -> None:
    make, again = CODE[form]
    argv = make(trap)
    assert not trap.sprung
    before = trap.cli.files()
    ran = trap(*argv)
    assert ran.code == 2 and ran.err.count("\n") == 1, ran.err
    assert f"names code outside advbench ({trap.module}:" in ran.err and "pass --trust-code" in ran.err
    assert not ran.err.startswith("error: a file")  # but which
    assert ("name it on the command line too" in ran.err) == (argv[0] != "compare")  # which has no flag for it
    assert not trap.sprung and trap.cli.files() == before
    assert trap(*argv, "--trust-pickle").code == 2 and not trap.sprung  # another consent
    if again:
        named = trap(*argv, *(word.replace("theirs", trap.module) for word in again))
        assert trap.sprung and named.code == 0, named.err
    trusted = trap(*argv, "--trust-code", *(["--force"] if argv[0] == "train" and again else []))
    assert trap.sprung and trusted.code == 0, trusted.err


@pytest.mark.parametrize("consent", ["trust-pickle", "trust_pickle", "trust-code", "trust_code"])
def test_a_file_cannot_consent(consent: str, trap: Trap) -> None:
    config = trap.file("flags.toml", f"{consent} = true\n")
    ran = trap("evaluate", "--model", weights(trap), "--arch", "linear", "--dataset", "digits", "--config", config)
    assert ran.is_one_clear_line and f"{consent} is for you to say, on the command line" in ran.err
    assert not trap.sprung


def test_again_takes_names_that_its_record_has(trap: Trap) -> None:
    trap.train("runs/a")
    record = trap.record("--attack", "fgsm")
    ran = trap("evaluate", "--again", record, "--attack", "pgd")
    assert ran.is_one_clear_line and "its record, whose --attack is fgsm, not pgd" in ran.err
    ran = trap("evaluate", "--again", record, "--attack", f"{trap.module}:attack")
    assert ran.is_one_clear_line and "whose --attack is fgsm, not" in ran.err and not trap.sprung
    assert trap("evaluate", "--again", record, "--attack", "fgsm", "--dataset", "digits", "--arch", "linear").code == 0


def test_in_python_arguments_are_consent_and_files_are_not(trap: Trap) -> None:
    name = f"{trap.module}:Net"
    run = folder(trap)
    for load in (advbench.load_model, lambda run: advbench.evaluate(run, eps="0.1", attack="fgsm", n=4)):
        sys.modules.pop(trap.module)
        with pytest.raises(advbench.UserError, match="pass trust_code=True"):
            load(run)
        assert not trap.sprung
        sys.modules[trap.module] = None  # type: ignore[assignment]
    for how in ({"arch": name}, {"trust_code": True}):
        sys.modules.pop(trap.module, None)
        assert advbench.load_model(run, **how).arch == name and trap.sprung
    config = trap.file("recipe.toml", f'model.arch = "{name}"\ntrain_n = 64\nvalidation.n = 16\n')
    given: dict[str, Any] = {"dataset": "digits", "epochs": 1, "config": config, "device": "cpu"}
    sys.modules.pop(trap.module)
    with pytest.raises(advbench.UserError, match=r"recipe\.toml names code outside"):
        advbench.train("standard", **given)
    assert not trap.sprung
    advbench.train("standard", **given, arch=name, out="runs/b")
    assert trap.sprung
