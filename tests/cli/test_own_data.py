"""Users' own data on the command line: npz files, callables, and the examples that `attack` wrote."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import pytest
import torch

from advbench import load_data

CODE = """
import torch
from torch.utils.data import DataLoader, TensorDataset
import advbench

def net(num_classes=10):
    x, y = advbench.load_data("digits", "train").batch(slice(None))
    x, onto = x.flatten(1).double(), torch.nn.functional.one_hot(y, num_classes).double() - 0.1
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes, bias=False))
    net[1].weight.data = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(64), x.T @ onto).T.float()
    return net

def split_digits(split):
    return TensorDataset(*advbench.load_data("digits", split).batch(slice(0, 60)))

def digits():
    return DataLoader(split_digits("test"), batch_size=16, shuffle=True)

def wrong():
    return "images"
"""
EVALUATE = ("evaluate", "--model", "mine:net", "--attack", "pgd", "--set", "steps=5", "--eps", "0,0.1", "--json")


@pytest.fixture
def own(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    (cli.folder / "mine.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield cli
    sys.modules.pop("mine", None)


def digits(n: int = 60, split: str = "test") -> tuple[Any, Any]:
    """float32 (n, 1, 8, 8) in sixteenths, and int64 (n,)."""
    x, y = load_data("digits", split).batch(slice(0, n))
    return x.numpy(), y.numpy()


def robust(ran: Any) -> list[int]:
    assert ran.code == 0, ran.err
    return [point["robust"] for point in json.loads(ran.out)["curve"]]


def test_test_arrays_that_lack_the_last_class(own: Any) -> None:
    x, y = digits()
    np.savez("some.npz", x_test=x[y < 9], y_test=y[y < 9])
    np.savetxt("rows.txt", np.flatnonzero(y < 9), fmt="%d")
    how = ("--attack", "fgsm", "--eps", "0,0.02", "--json")
    found = robust(own(*EVALUATE[:3], "--dataset", "npz:some.npz", *how))
    assert found == robust(own(*EVALUATE[:3], "--dataset", "digits", "--subset", "rows.txt", *how))
    assert 40 < found[0] <= (y < 9).sum() and found[0] > found[1] > 0


@pytest.mark.parametrize("spec", ["npz:all.npz", "npz:map.npz", "mine:split_digits", "mine:digits"])
def test_every_way_to_give_the_same_images(own: Any, spec: str) -> None:
    x, y = digits()
    np.savez("all.npz", x=x.transpose(0, 2, 3, 1), y=y[:, None])
    np.savez(
        "map.npz",
        x_test=x.astype(np.float64),
        y_test=y + 100,
        class_map=np.stack([np.arange(10) + 100, np.arange(10)], 1),
    )
    ran = own(*EVALUATE, "--dataset", spec)
    assert robust(ran) == robust(own(*EVALUATE, "--dataset", "digits", "-n", "60"))
    assert json.loads(ran.out)["dataset"]["name"] == spec


def test_what_should_be_known_of_data_is_said(own: Any) -> None:
    ran = own(*EVALUATE[:-1], "--dataset", "mine:digits", "-n", "20")
    assert "mine:digits: mine:digits takes no split" in ran.err
    assert "takes no split" not in own(*EVALUATE[:-1], "--dataset", "mine:split_digits", "-n", "20").err


def test_examples_of_an_attack_are_data(own: Any) -> None:
    attack = ("attack", "--model", "mine:net", "--dataset", "digits", "--eps", "0.1", "-n", "40", "--out", "out")
    assert own(*attack).code == 0
    ran = own(*EVALUATE[:-1], "--dataset", "npz:out/examples.npz")
    assert "the images are adversarial examples (x_adv)" in ran.err
    record = json.loads(own(*EVALUATE, "--dataset", "npz:out/examples.npz").out)
    stored = np.load("out/examples.npz")
    assert record["curve"][0]["robust"] == int((stored["after"] == stored["y"]).sum()) < 20
    again = own("evaluate", "--again", record["path"], "--model", "mine:net", "--dataset", "npz:out/examples.npz")
    assert again.code == 0 and "the same: record" in again.out, again.err


def test_training_on_train_arrays_alone(own: Any) -> None:
    np.savez("train.npz", **dict(zip(("x_train", "y_train"), digits(256, "train"), strict=True)))
    np.savez("test.npz", **dict(zip(("x_test", "y_test"), digits(), strict=True)))
    flags = ("--arch", "mlp", "--eps", "0.1", "--epochs", "8", "--set", "batch_size=16", "--set", "validation.n=16")
    assert own("train", "--method", "standard", "--dataset", "npz:train.npz", *flags, "--out", "run").code == 0
    curve = robust(own("evaluate", "--model", "run", "--dataset", "npz:test.npz", "--attack", "fgsm", "--json"))
    assert curve[0] > 15
    ran = own("evaluate", "--model", "run", "--attack", "fgsm")
    assert ran.is_one_clear_line and "lacks x_test or test_x or test_images or x_adv or x or images" in ran.err
    ran = own("train", "--dataset", "npz:train.npz", *flags, "--set", "augment.policy=autoaugment", "--out", "other")
    assert ran.code == 2 and "autoaugment needs values up to 255" in ran.err and "Traceback" not in ran.err
    two_channels = np.random.default_rng(0).integers(0, 256, (64, 2, 8, 8)).astype(np.uint8)
    np.savez("two.npz", x_train=two_channels, y_train=np.arange(64) % 4)
    ran = own("train", "--dataset", "npz:two.npz", *flags, "--set", "augment.policy=autoaugment", "--out", "two")
    assert ran.code == 2 and "needs 1 or 3 channels: npz:two.npz has 2" in ran.err.splitlines()[-1], ran.err
    assert not os.path.exists("two")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": np.zeros((3, 1, 8, 8)), "y": np.array([0, 1, 11])},
            "mine:net has 10 classes, npz:bad.npz has at least 12",
        ),
        (
            {"x": np.zeros((3, 1, 8, 8)), "y": np.arange(3), "num_classes": 2},
            "labels run from 0 to 2, but must lie in 0",
        ),
        ({"x": np.zeros((3, 3, 8, 3)), "y": np.arange(3)}, "which axis of (3, 3, 8, 3) has the channels"),
        ({"x": np.full((3, 8, 8), 255.0), "y": np.arange(3)}, "divide by 255"),
        ({"x": np.zeros((3, 8, 8)), "y": np.eye(3)}, "one-hot or probabilities"),
        ({"z": np.zeros((3, 8, 8))}, "or images; it has z"),
    ],
)
def test_npz_files_that_do_not_fit_are_one_line(own: Any, arrays: dict[str, Any], message: str) -> None:
    np.savez("bad.npz", **arrays)
    before = own.files()
    ran = own(*EVALUATE, "--dataset", "npz:bad.npz")
    assert ran.code == 2 and message in ran.err.splitlines()[-1] and "Traceback" not in ran.err
    assert own.files() - before <= {"__pycache__"} | {name for name in own.files() if "__pycache__" in name}


def test_a_callable_that_returns_no_data_is_one_line(own: Any) -> None:
    ran = own(*EVALUATE, "--dataset", "mine:wrong")
    assert ran.code == 2 and "mine:wrong" in ran.err.splitlines()[-1] and "Traceback" not in ran.err


def test_floats_keep_what_bytes_would_lose(own: Any) -> None:
    x, y = digits()
    np.savez("floats.npz", x_test=x * np.float32(0.9), y_test=y)
    robust(own(*EVALUATE, "--dataset", "npz:floats.npz"))
    data = load_data("npz:floats.npz")
    assert data.images.dtype == torch.float32
    assert np.array_equal(data.batch(slice(None))[0].numpy(), x * np.float32(0.9))
