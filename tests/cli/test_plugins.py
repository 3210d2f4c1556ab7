"""Users' own modules in the current folder, one of each kind, named on the command line as `module:name`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ATTACK = """
import torch
from dataclasses import dataclass
from advbench.attacks.pgd import PGD

ENTRIES = {
    "short-pgd": {"make": "Mine", "set": {"name": "short-pgd", "steps": 2}, "summary": "2 steps"},
    "pair": {"make": "both", "summary": "two attacks"},
    "weak": {"make": "scaled", "set": {"factor": 0.0}, "summary": "a function with an argument set"},
    "misspelt": {"make": "Mine", "set": {"stepz": 2}, "summary": "a setting that there is not"},
    "no-dict": {"make": "Mine", "set": [2], "summary": "settings that are none"},
}

@dataclass(frozen=True, kw_only=True)
class Mine(PGD):
    steps: int = 3

@dataclass(frozen=True, kw_only=True)
class Needy(PGD):
    steps: int = 3
    width: int

def both(norm="linf"):
    return (PGD(name="one", steps=1), PGD(name="other", steps=2))

def function(model, x, y, eps):
    assert not model.training and isinstance(eps, float)
    z = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(z), y)
    loss.backward()
    return (x + eps * z.grad.sign()).clamp(0, 1)

def outside_the_ball(model, x, y, eps):
    return torch.rand_like(x)

def vandal(model, x, y, eps):
    model.train()
    for parameter in model.parameters():
        parameter.data.zero_()
    return x

def scaled(model, x, y, eps, factor=1.0):
    return function(model, x, y, factor * eps)

def nan(model, x, y, eps):
    return x * float("nan")

def fails(norm="linf"):
    raise RuntimeError("not today")

def raises(model, x, y, eps):
    raise KeyError("no such thing")

def other_shape(model, x, y, eps):
    return x[:1]

def nothing(width):
    return width
"""
METHOD = """
from dataclasses import dataclass
from advbench.methods.pgd_at import PGDAT

ENTRIES = {"my-at": {"make": "MyAT", "recipe": {"inner.steps": 3}, "summary": "3 steps"}}

@dataclass(frozen=True, kw_only=True)
class MyAT(PGDAT):
    pass
"""
DATA = """
import torch
from advbench.data.tensors import from_tensors

def noise(split):
    draw = torch.Generator().manual_seed(len(split))
    x = torch.randint(0, 256, (40, 1, 8, 8), generator=draw, dtype=torch.uint8)
    return from_tensors(x, torch.arange(40) % 10)
"""
MODEL = """
import torch
from torch import nn

def net(num_classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""
ANALYSIS = """
import pandas as pd
from advbench.analyses.base import Analysis

def count(runs, *, times=1):
    return Analysis(title="runs", tables={"runs": pd.DataFrame({"n": [times * len(runs)]})}, notes=())
"""
EVALUATE = ("evaluate", "--eps", "0,0.1", "-n", "40", "--json")


@pytest.fixture
def own(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line in a folder with the modules, which each test imports anew."""
    sources = {"my_attack": ATTACK, "my_method": METHOD, "my_data": DATA, "my_model": MODEL, "my_analysis": ANALYSIS}
    for name, source in sources.items():
        (cli.folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield cli
    for name in sources:
        sys.modules.pop(name, None)


def record(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "steps"), [("short-pgd", [2]), ("Mine", [3]), ("pair", [1, 2]), ("both", [1, 2])])
def test_attacks_by_entry_class_and_maker(own: Any, run_folder: Path, name: str, steps: list[int]) -> None:
    found = record(own(*EVALUATE, "--attack", f"my_attack:{name}"))
    assert [attack["settings"]["steps"] for attack in found["attack"]] == steps
    assert found["attack"][0]["settings"]["set"] == f"my_attack:{name}"


def test_a_class_of_the_package_by_its_module(own: Any, run_folder: Path) -> None:
    found = record(own(*EVALUATE, "--attack", "advbench.attacks.pgd:PGD", "--set", "steps=4"))
    assert found["attack"][0]["settings"]["steps"] == 4


def test_a_function_is_an_attack_whose_points_are_verified(own: Any, run_folder: Path) -> None:
    ran = own(*EVALUATE, "--attack", "my_attack:function")
    ours, fgsm = record(ran), record(own(*EVALUATE, "--attack", "fgsm"))
    assert [point["robust"] for point in ours["curve"]] == [point["robust"] for point in fgsm["curve"]]
    assert ours["curve"][1]["robust"] < ours["curve"][0]["robust"]
    assert len(ours["attack"][0]["settings"]["code_sha256"]) == 64
    assert ran.err.count("my_attack:function is code outside advbench, which runs now") == 1


def test_a_function_gives_examples(own: Any, run_folder: Path) -> None:
    ran = own("attack", "--attack", "my_attack:function", "--eps", "0.1", "-n", "40", "--out", "examples", "--json")
    summary = record(ran)
    with np.load(own.folder / "examples" / "examples.npz") as arrays:
        change = np.abs(arrays["x_adv"] - arrays["x"]).max((1, 2, 3))
        assert summary["felled"] == int(arrays["felled"].sum()) > 0 and (change[arrays["felled"]] > 0).all()
        assert change.max() <= 0.1 + 1e-6


def test_points_outside_of_the_ball_count_for_nothing(own: Any, run_folder: Path) -> None:
    found = record(own(*EVALUATE, "--attack", "my_attack:outside_the_ball"))
    assert found["curve"][1]["robust"] == found["curve"][0]["robust"]
    (flag,) = [flag for flag in found["flags"] if flag["name"] == "outside-ball"]
    assert flag["severity"] == "suspect" and flag["k"] == flag["n"] == found["curve"][0]["robust"]
    beside = record(own(*EVALUATE, "--attack", "my_attack:outside_the_ball,pgd"))
    (flag,) = [flag for flag in beside["flags"] if flag["name"] == "outside-ball"]
    assert flag["severity"] == "note"


def test_what_a_function_does_to_the_model_is_done_to_a_copy(own: Any, run_folder: Path) -> None:
    found = record(own(*EVALUATE, "--attack", "my_attack:vandal,pgd"))
    plain = record(own(*EVALUATE, "--attack", "pgd"))
    assert [point["robust"] for point in found["curve"]] == [point["robust"] for point in plain["curve"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "attack my_attack:raises failed: KeyError: 'no such thing'"),
        ("other_shape", "attack my_attack:other_shape must return its points, a tensor of shape"),
        ("nothing", "my_attack:nothing made a MLP: an attack derives from"),
        ("Needy", "my_attack:Needy needs width: give defaults where it is defined, or in ENTRIES"),
        ("ENTRIES", "my_attack:ENTRIES is a dict: a class or a function is needed"),
        ("torch.Tensor", "my_attack:torch.Tensor made a Tensor: an attack derives from"),
        ("misspelt", "unknown setting of my_attack:misspelt 'stepz'"),
        ("no-dict", "my_attack:no-dict: 'set' in ENTRIES is a list: write a dict of settings"),
        ("fails", "my_attack:fails failed: RuntimeError: not today"),
        ("absent", "cannot load attack 'my_attack:absent': module 'my_attack' has no attribute 'absent'"),
    ],
)
def test_what_is_not_an_attack_is_refused_in_one_line(own: Any, run_folder: Path, name: str, message: str) -> None:
    ran = own(*EVALUATE, "--attack", f"my_attack:{name}")
    assert ran.code == 2 and not ran.out
    assert message in ran.err.splitlines()[-1] and "Traceback" not in ran.err


@pytest.mark.parametrize(("name", "steps"), [("my-at", 3), ("MyAT", 10)])
def test_a_method_by_entry_and_by_class(own: Any, name: str, steps: int) -> None:
    ran = own("train", "--method", f"my_method:{name}", "--dataset", "digits", "--arch", "mlp", "--dry-run", "--json")
    assert record(ran)["recipe"]["inner"]["steps"] == steps


def test_a_method_trains_and_is_evaluated(own: Any) -> None:
    short = ["--epochs", "1", "--set", "train_n=64", "--set", "inner.steps=1"]
    data = ["--dataset", "digits", "--arch", "mlp"]
    ran = own("train", "--method", "my_method:my-at", *data, *short, "--out", "runs/own")
    assert ran.code == 0, ran.err
    assert record(own(*EVALUATE, "--attack", "fgsm"))["model"]["trained"]["method"] == "my_method:my-at"


def test_images_a_model_and_an_analysis(own: Any, run_folder: Path) -> None:
    found = record(own(*EVALUATE, "--model", "my_model:net", "--dataset", "my_data:noise", "--attack", "fgsm"))
    assert found["curve"][0]["n"] == 40
    ran = own("analyze", "my_analysis:count", run_folder, "--set", "times=3", "--json")
    assert record(ran)["tables"]["runs"] == [{"n": 3}]


def test_arguments_that_entries_set_for_a_function(own: Any, run_folder: Path) -> None:
    weak, whole = (record(own(*EVALUATE, "--attack", f"my_attack:{name}")) for name in ("weak", "scaled"))
    assert weak["curve"][1]["robust"] == weak["curve"][0]["robust"] > whole["curve"][1]["robust"]
    assert weak["attack"][0]["settings"]["factor"] == 0.0 and "factor" not in whole["attack"][0]["settings"]


def test_points_that_are_no_numbers_say_nothing_of_the_model(own: Any, run_folder: Path) -> None:
    found = record(own(*EVALUATE, "--attack", "my_attack:nan"))
    names = {flag["name"] for flag in found["flags"]}
    assert "outside-ball" in names and "non-finite" not in names
    assert found["curve"][1]["robust"] == found["curve"][0]["robust"]


def test_a_table_of_another_kind_is_no_table(own: Any, run_folder: Path) -> None:
    (own.folder / "my_other.py").write_text("ENTRIES = ['a']\ndef clean(model, x, y, eps):\n    return x\n")
    found = record(own(*EVALUATE, "--attack", "my_other:clean"))
    assert found["curve"][1]["robust"] == found["curve"][0]["robust"]


def test_a_file_does_not_stand_in_for_an_installed_module(own: Any, run_folder: Path) -> None:
    (own.folder / "fractions.py").write_text("raise RuntimeError('this is not the standard library')\n")
    assert record(own(*EVALUATE, "--attack", "my_attack:Mine"))["curve"][0]["n"] == 40
    assert sys.path[-1] == str(own.folder)


@pytest.mark.parametrize(
    "attack", [["my_attack:function"], ["transfer", "--set", "source=runs/a", "--set", "steps=3"], ["feature-pgd"]]
)
def test_a_record_is_repeated(own: Any, run_folder: Path, attack: list[str]) -> None:
    found = record(own(*EVALUATE, "--attack", *attack))
    code = [word for word in attack if word == "my_attack:function"]  # which only the command line may name
    again = record(own("evaluate", "--again", found["path"], "--json", *(["--attack", *code] if code else [])))
    assert again["same"] and again["moved"] == 0


def test_a_record_of_a_function_that_changed_is_not_repeated(own: Any, run_folder: Path) -> None:
    found = record(own(*EVALUATE, "--attack", "my_attack:function"))
    (own.folder / "my_attack.py").write_text(ATTACK + "\n")
    del sys.modules["my_attack"]  # as in another process
    ran = own("evaluate", "--again", found["path"], "--trust-code")
    assert ran.code == 2 and "the code of my_attack:function has changed since" in ran.err
