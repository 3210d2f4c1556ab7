"""Names that are nearly right: the error says what to type instead."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
"""


MEANT = {
    "gate": "write advbench compare A --baseline B --fail-if",
    "eval": "write advbench evaluate",
    "trades": "write advbench train --method trades",
    "pictures": "write advbench evaluate --model pictures",
    "evaluate --targeted": "write --attack apgd-t",
    "evaluate --epsilon 8/255": "write --eps 8/255",
    "evaluate --steps 40": "write --set steps=40",
    "attack --rel-step=0.1": "write --set rel_step=0.1",
    "analyze --steps 3": "write --set steps=3",
    "train --weight-decay 5": "write --set optim.weight_decay=5",
    "train --beta 6": "write --set method.beta=6",
    "evaluate --fail-if x": "a flag of advbench compare",
    "train --samples 4": "choose from --arch",
    "--eps 0.1 evaluate": "a flag of advbench train and attack and evaluate and analyze, and stands behind the command",
    "evaluate --eps": "--eps needs a value; see advbench evaluate --help",
    "evaluate --certify --eps 0.1": "--certify needs a value; see advbench evaluate --help",
    "evaluate --json=true": "--json takes no value; see advbench evaluate --help",
    "analyze pictures": "which analysis? name it before pictures",
    "list pgd": "write advbench list attacks pgd",
    "evaluate pictures": "write --model pictures",
    "evaluate 8/255": "write --eps 8/255",
    "train trades": "write --method trades",
    "train more": "takes flags alone",
    "evaluate --eps 0.1 0.2": "write --eps 0.1,0.2",
    "train --set epochs 4": "write --set epochs=4",
    "evaluate --model x --dataset CIFAR10": "did you mean cifar10",
    "attack --model x --dataset digits --attack pgd,fgsm": "only one can be given here",
    "evaluate --attack resnet18": "resnet18 is an architecture (--arch), no attack",
    "train --method pgd": "pgd is an attack (--attack), no method",
    "train --arch digits": "digits is a dataset (--dataset), no architecture",
    "train --dataset trades": "trades is a method (--method), no dataset",
    "train --arch resnet50": "write torchvision:resnet50",
    "train --set epochs=abc": "recipe field epochs is 'abc': it must be a whole number",
    "train --set inner.steps=-1": "recipe field inner.steps is '-1': it must be at least 1",
    "train --set optim.name=sgdm": "it must be sgd, adam, adamw",
}


@pytest.mark.parametrize("line", MEANT)
def test_the_error_says_what_was_meant(folder: Any, line: str) -> None:
    ran = folder(*line.split())
    assert ran.is_one_clear_line and MEANT[line] in ran.err, ran.err


@pytest.fixture
def folder(cli: Any) -> Any:
    """A folder with hinted.py, three.npz (labels 0 and 2) and a folder `pictures`."""
    Path("hinted.py").write_text(NET)
    Path("pictures").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2 * 2
    np.savez("three.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return cli


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --arch hinted", "or write hinted:NAME, of hinted.py"),
        ("train --arch hinted.py", "or write hinted:NAME, of hinted.py"),
        ("train --arch hinted.py:Net", "write the module without folder and .py, such as mynet:Net"),
        ("train --arch hinted:net", "module 'hinted' has no attribute 'net'; it has Net"),
        ("train --arch resnet180", "or write torchvision:NAME, timm:NAME or package.module:callable"),
        ("evaluate --model hinted:Net --attack hinted", "or write hinted:NAME, of hinted.py"),
        ("evaluate --model hinted:Net --attack nothing", "or write module:name"),
        ("evaluate --model hinted:Net --dataset digits --norm l0 -a sigma-zero", "a list such as --eps 0,5,10"),
        ("attack --model hinted:Net --dataset digits --norm l0 -a sigma-zero", "a size such as --eps 10"),
        ("evaluate --model hinted:Net --dataset three.npz", "or write npz:three.npz"),
        ("evaluate --model hinted:Net --dataset pictures", "or write imagefolder:pictures"),
        ("evaluate --model three.npz --dataset digits", "unknown model 'three.npz': it is no file of a model"),
        ("evaluate --model hinted:Net --dataset digits --mean 127 --std 64", "127 of 255 is 0.498"),
    ],
)
def test_the_error_says_what_to_type(folder: Any, line: str, words: str) -> None:
    ran = folder(*line.split())
    last = ran.err.splitlines()[-1]
    assert ran.code == 2 and not ran.out and last.startswith("error: ") and words in last, ran.err
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == {"hinted.py", "three.npz", "pictures"}


def test_a_trusted_pickle_finds_classes_of_the_current_folder(folder: Any) -> None:
    ran = folder(
        "evaluate", "--model", "hinted:Net", "--dataset", "digits", "--attack", "fgsm", "--eps", "0", "-n", "4"
    )
    assert ran.code == 0, ran.err  # it has put the folder on the path, and the class is known
    import hinted  # type: ignore[import-not-found]

    torch.save(hinted.Net(), "whole.pt")
    line = "evaluate --model whole.pt --dataset digits --attack fgsm --eps 0 -n 4"
    assert folder(*line.split()).code == 2
    del sys.modules["hinted"]
    sys.path[:] = [place for place in sys.path if place not in ("", str(Path.cwd()))]
    ran = folder(*line.split(), "--trust-pickle")
    assert ran.code == 0, ran.err


def test_classes_that_the_first_images_lack_are_told(folder: Any) -> None:
    y = np.sort(np.arange(60) % 3)
    np.savez("sorted.npz", x_train=np.random.rand(60, 1, 8, 8), y_train=y, class_names=["a", "b", "c"])
    line = "train --arch hinted:Net --dataset npz:sorted.npz --method standard --epochs 2 --batch-size 8"
    ran = folder(*line.split(), "--set", "validation.fraction=0.2", "--set", "train_n=30")
    assert ran.code == 0, ran.err
    assert "only 2 of the 3 classes occur among the first 30 images, which train_n=30 takes, to train on" in ran.err


def test_labels_that_skip_a_class_are_told_before_training(folder: Any) -> None:
    ran = folder("train", "--arch", "hinted:Net", "--dataset", "npz:three.npz", "--method", "standard", "--epochs", "1",
                 "--batch-size", "8", "--set", "validation.fraction=0.2")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "the labels run from 0 to 2, but only 2 of them occur: 3 classes are trained" in ran.err
    assert "to evaluate it: advbench evaluate --model runs/" in ran.err and "--arch hinted:Net" in ran.err
