"""One's own network on one's own images, from training to a gate, as a newcomer types it in an empty folder."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from advbench.checkpoint import load_model, read_card

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Linear(4 * 10 * 6, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))
"""
numbers = count()
SHORT = ["--epochs", "1", "--batch-size", "16", "--lr", "0.003", "--eps", "0.05"]
SHORT += [word for field in ("optim.name=adam", "inner.steps=2", "validation.steps=2") for word in ("--set", field)]


@pytest.fixture
def mine(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command line in a folder with mine.npz (20 x 12 images of two classes) and a module; its name is `net`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 300), ("test", 60)):
        y = rng.integers(0, 2, n)
        x = rng.integers(0, 100, (n, 20, 12)).astype(np.uint8)
        x[y == 1, :10] += 90
        arrays |= {f"x_{part}": x, f"y_{part}": y}
    np.savez("mine.npz", **arrays)
    module = f"mynet{next(numbers)}"
    Path(f"{module}.py").write_text(NET)
    cli_with_net = type("Mine", (), {"net": f"{module}:Net", "__call__": staticmethod(cli), "files": cli.files})()
    yield cli_with_net
    sys.modules.pop(module, None)


def test_from_training_to_a_gate(mine: Any) -> None:
    arch, data = ["--arch", mine.net], ["--dataset", "npz:mine.npz"]
    ran = mine("train", *arch, *data, "--method", "trades", *SHORT, "--epochs", "2", "--out", "runs/a",
               "--name", "my net")  # fmt: skip
    assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    assert "294 training images, 6 held out for validation" in ran.err and "warning: few held-out images (6)" in ran.err
    card = read_card(Path("runs/a"))
    assert card.name == "my net" and card.model.image_size == (20, 12) and card.model.arch == mine.net

    measure = ["--attack", "fgsm", "--eps", "0,0.05", "-n", "16", "--device", "cpu"]
    ran = mine("evaluate", *measure)
    assert ran.code == 2 and f"--arch {mine.net}" in ran.err and "--trust-code" in ran.err
    ran = mine("evaluate", *arch, *measure, "--save-baseline", "base.json", "--json")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert record["model"]["name"] == "my net" and record["clean"] == 1.0

    ran = mine("train", *arch, *data, "--method", "pgd-at", *SHORT, "--out", "runs/b")
    assert ran.code == 0, ran.err
    ran = mine("evaluate", "--model", "runs/b", *arch, *measure)
    assert ran.code == 0, ran.err
    ran = mine("compare", "runs/b", "--baseline", "base.json", "--fail-if", "clean < 50", "--allow-flags",
               "at-chance")  # fmt: skip
    assert ran.code == 0, ran.err + ran.out


def test_a_weights_file_of_ones_own_net(mine: Any) -> None:
    sys.path.append(str(Path.cwd()))
    module = __import__(mine.net.partition(":")[0])
    torch.manual_seed(0)
    torch.save(nn.DataParallel(module.Net()).state_dict(), "w.pt")
    few = ["--dataset", "npz:mine.npz", "--attack", "fgsm", "--eps", "0,0.05", "-n", "8"]
    ran = mine("evaluate", "--model", "w.pt", "--arch", mine.net, *few)
    assert ran.code == 0, ran.err
    training = ["train", "--arch", mine.net, "--dataset", "npz:mine.npz", "--method", "standard", *SHORT]
    ran = mine(*training, "--init", "w.pt", "--out", "runs/tuned")
    assert ran.code == 0, ran.err
    recipe = tomllib.loads(Path("runs/tuned/recipe.toml").read_text())
    assert recipe["init"]["path"] == "w.pt" and len(recipe["init"]["sha256"]) == 64
    ran = mine(*training, "--init", "runs/tuned", "--out", "runs/again")
    assert ran.code == 0, ran.err


def test_a_run_and_a_file_of_its_weights_are_one_model(mine: Any) -> None:
    training = ["train", "--arch", mine.net, "--dataset", "npz:mine.npz", "--method", "standard", *SHORT]
    assert mine(*training, "--out", "runs/a").code == 0
    torch.save(load_file("runs/a/model.safetensors"), "w.pt")
    ids = []
    for model in ("runs/a", "w.pt"):
        ran = mine("evaluate", "--model", model, "--arch", mine.net, "--dataset", "npz:mine.npz", "--attack", "fgsm",
                   "--eps", "0,0.05", "-n", "16", "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        ids.append(json.loads(ran.out)["id"])
    assert ids[0] == ids[1]


def test_normalisation_in_front_of_any_net(mine: Any) -> None:
    few = ["--dataset", "npz:mine.npz", "--method", "standard", *SHORT]
    for arch, out in ((mine.net, "runs/a"), ("mlp", "runs/b")):
        ran = mine("train", "--arch", arch, *few, "--mean", "0.4", "--std", "0.2", "--out", out)
        assert ran.code == 0, ran.err
        assert tomllib.loads(Path(out, "recipe.toml").read_text())["model"]["normalize"] == [[0.4], [0.2]]
        net = load_model(out, trust_code=True).net
        assert net.normalise(torch.full((1, 1, 20, 12), 0.8)).mean() == pytest.approx(2.0)
    ran = mine("evaluate", "--model", "runs/a", "--arch", mine.net, "--mean", "half", "--attack", "fgsm")
    assert ran.code == 2 and "normalises its images itself" in ran.err.splitlines()[-1]
    for wrong, message in ((["--mean", "0.4"], "--mean without --std"),
                           (["--mean", "imagenet"], "normalize is [[0.485")):  # fmt: skip
        ran = mine("train", "--arch", "mlp", *few, *wrong, "--out", "runs/c")
        assert ran.code == 2 and message in ran.err.splitlines()[-1], ran.err
        assert "runs/c/recipe.toml" not in mine.files()


def test_a_pickle_to_start_from_needs_trust(mine: Any) -> None:
    sys.path.append(str(Path.cwd()))
    module = __import__(mine.net.partition(":")[0])
    torch.save(module.Net(), "whole.pt")
    argv = ["train", "--arch", mine.net, "--dataset", "npz:mine.npz", "--method", "standard", *SHORT, "--init",
            "whole.pt", "--out", "runs/a"]  # fmt: skip
    ran = mine(*argv)
    assert ran.code == 2 and "--trust-pickle" in ran.err.splitlines()[-1] and "runs/a/recipe.toml" not in mine.files()
    assert mine(*argv, "--trust-pickle").code == 0


def test_more_epochs(cli: Any) -> None:
    argv = ["train", "--method", "pgd-at", "--dataset", "digits", "--arch", "mlp", "--set", "train_n=128", *SHORT[2:]]
    argv += ["--set", "model.width=8", "--set", "schedule.name=constant"]
    assert cli(*argv, "--epochs", "1").code == 0
    ran = cli(*argv, "--epochs", "2", "--resume")
    assert ran.code == 0 and "resuming after epoch 1 of 2" in ran.err
    (run,) = Path("runs").iterdir()
    assert read_card(run).results["epochs"] == 2
    ran = cli(*argv, "--epochs", "2", "--resume")
    assert ran.code == 0 and f"{run} is finished: nothing to do" in ran.err
    ran = cli(*argv[:-2], "--epochs", "1", "--out", "runs/cycle")
    ran = cli(*argv[:-2], "--epochs", "2", "--out", "runs/cycle", "--resume")
    assert ran.is_one_clear_line and "and schedule.name=onecycle followed that number: start a new run" in ran.err
    assert "--init runs/cycle" in ran.err and read_card(Path("runs/cycle")).finished


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--arch", "timm"], "or write torchvision:NAME, timm:NAME or package.module:callable"),
        (["--arch", "torchvision:resnet19"], "unknown torchvision model 'resnet19': did you mean resnet18"),
        (["--init", "none.pt"], "init: there is no weights file none.pt: name a file, or the folder of a run"),
        (["--init", "."], "init: there is no weights file model.safetensors"),
        (["--name", " "], "--name is the name of one model, and not empty"),
        (["--name", "x", "--seed", "0,1"], "--name is the name of one model"),
        (["--arch", "mlp", "--set", "model.features=fc"], "unknown setting of mlp 'features'"),
    ],
)
def test_wrong_flags(cli: Any, argv: list[str], message: str) -> None:
    ran = cli("train", "--dataset", "digits", *argv)
    assert ran.code == 2 and message in ran.err.splitlines()[-1] and "Traceback" not in ran.err
    assert not [file for file in cli.files() if not file.startswith("runs")]


def test_the_forms_are_in_help_and_list(cli: Any) -> None:
    for command in ("train", "evaluate", "attack"):
        text = " ".join(cli(command, "--help").out.replace("│", " ").split())
        assert "torchvision:NAME" in text and "timm:NAME" in text, command
    listed = {row["name"]: row["summary"] for row in json.loads(cli("list", "models", "--json").out)}
    assert all("--arch" in summary for name, summary in listed.items() if name.startswith(("torchvision:N", "timm:N")))
