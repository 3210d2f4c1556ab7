"""The heads of a multi-task run: loaded as they were saved, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from advbench.checkpoint import BEST, load_heads, load_model
from advbench.errors import UserError
from advbench.models.base import Model
from advbench.models.state_files import read_state
from advbench.models.tasks import Macro
from advbench.recipe import Recipe
from advbench.trainer import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sets = ["epochs=1", "train_n=64", "validation.fraction=0.2", "method.tasks=macro,rotation"]
    groups = "method.macro=0,0,0,0,0,1,1,1,1,1"
    recipe = Recipe.resolve(method="multi-task", arch="mlp", sets=[*sets, groups])
    return train(recipe, tmp_path_factory.mktemp("runs") / "several", device="cpu")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run"


def net_of(folder: Path) -> Model:
    net = load_model(str(folder)).net
    assert isinstance(net, Model)
    return net


def test_heads_are_those_of_the_files_in_the_order_of_the_run(folder: Path) -> None:
    heads = load_heads(folder, net_of(folder))
    assert list(heads) == ["macro", "rotation"]
    for name, head in heads.items():
        state, _ = read_state(folder / "parts" / f"{name}.safetensors")
        assert isinstance(state, dict) and set(state) == set(head.state_dict())
        assert all(torch.equal(value, state[key]) for key, value in head.state_dict().items())
        assert not head.training and not any(weight.requires_grad for weight in head.parameters())
    task = heads["macro"].task
    assert isinstance(task, Macro) and task.groups.tolist() == [0] * 5 + [1] * 5


def test_heads_of_a_network_from_outside(tmp_path: Path) -> None:
    """Its number of features is told by a pass, which nothing that sketches weights may be around."""
    sets = ["epochs=1", "train_n=64", "validation.fraction=0.2", "method.tasks=rotation", "inner.steps=1"]
    recipe = Recipe.resolve(method="multi-task", arch="torchvision:resnet18", dataset="digits", sets=sets)
    run = train(recipe, tmp_path / "one", device="cpu")
    assert list(load_heads(run, net_of(run))) == ["rotation"]


def test_a_run_without_tasks_has_none(tmp_path: Path) -> None:
    sets = ["epochs=1", "train_n=64", "validation.fraction=0.2"]
    run = train(Recipe.resolve(method="standard", arch="mlp", sets=sets), tmp_path / "one", device="cpu")
    assert load_heads(run, net_of(run)) == {}


def missing(file: Path) -> None:
    file.unlink()


def altered(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("harm", "says"), [(missing, r"not a complete multi-task run: parts/rotation.safetensors"), (altered, "altered")]
)
def test_damage_is_refused(harm: Callable[[Path], None], says: str, copied: Path) -> None:
    harm(copied / "parts" / "rotation.safetensors")
    with pytest.raises(UserError, match=says):
        load_heads(copied, net_of(copied))


def test_loaded_names_the_file_of_the_run(folder: Path) -> None:
    for spec, file in ((folder, BEST), (folder / BEST, BEST), (folder / "last.safetensors", "last.safetensors")):
        assert load_model(str(spec)).file == file
