"""--mean, --std and --abstain as typed: in the record, its repetition, the board, the gate and in what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NETS = """
import torch
from torch import nn
from advbench.data import load

class Means(nn.Module):
    '''The likeliest class by its mean image, for digits that were normalised by (x - 0.5) / 0.5.'''
    def __init__(self, rejects=False):
        super().__init__()
        x, y = load("digits", "train").batch(slice(None))
        x = (x - 0.5) / 0.5
        means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
        self.register_buffer("weight", 10 * means)
        self.register_buffer("bias", -5 * means.square().sum(1))
        self.rejects = rejects

    def forward(self, x):
        z = nn.functional.linear(x.flatten(1), self.weight, self.bias)
        return torch.cat([z, z.topk(2, 1).values[:, 1:] + 10], 1) if self.rejects else z

def plain():
    return Means()

def rejecting():
    return Means(rejects=True)

def shifted():
    net = Means()
    net.bias += torch.arange(10) * 3.0
    return net
"""
SHORT = ["--dataset", "digits", "-n", "40", "--eps", "0,0.1", "--device", "cpu"]


@pytest.fixture
def nets(cli: Any) -> Any:
    (cli.folder / "nets_of_means.py").write_text(NETS)
    return cli


def evaluated(cli: Any, *words: object, attack: str = "fgsm") -> dict[str, Any]:
    """The record of an evaluation, with its path. Later `words` replace earlier ones."""
    ran = cli("evaluate", *SHORT, "--attack", attack, "--leaderboard", "board", "--json", *words)
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out.splitlines()[-1])
    return found


def test_it_is_the_model_that_it_was_trained_as_and_part_of_its_identity(nets: Any) -> None:
    without = evaluated(nets, "--model", "nets_of_means:plain")
    found = evaluated(nets, "--model", "nets_of_means:plain", "--mean", "half")
    spelled = evaluated(nets, "--model", "nets_of_means:plain", "--mean", "0.50", "--std", "5e-1")
    assert (found["model"]["mean"], found["model"]["std"], without["model"]["mean"]) == ([0.5], [0.5], None)
    assert any("normalised by mean 0.5 and std 0.5" in flag["detail"] for flag in found["flags"])
    assert found["model"]["weights_sha256"] == without["model"]["weights_sha256"]
    assert found["question"] != without["question"] and found["clean"] >= 0.7
    assert found["curve"] != without["curve"]
    assert spelled["id"] == found["id"]
    ids = {path.stem for path in Path("board/records").rglob("*.json")}
    assert ids == {found["id"], without["id"]}  # both are ranked: other models, though of the same weights
    text = Path("board/digits-linf.md").read_text()
    assert text.count("| nets_of_means:plain |  | nets_of_means:plain |") == 2


def test_a_record_is_repeated_with_it(nets: Any) -> None:
    found = evaluated(nets, "--model", "nets_of_means:plain", "--mean", "half")
    ran = nets("evaluate", "--again", found["path"], "--model", "nets_of_means:plain", "--json")
    assert ran.code == 0 and json.loads(ran.out)["same"] is True
    ran = nets("evaluate", "--again", found["path"], "--mean", "imagenet")
    assert ran.is_one_clear_line and "--mean would change" in ran.err


def test_adversarial_examples_of_a_normalised_model(nets: Any) -> None:
    words = ("attack", "--model", "nets_of_means:plain", "--dataset", "digits", "--eps", "0.2", "-n", "20")
    ran = nets(*words, "--mean", "half", "--device", "cpu", "--out", "found", "--json")
    assert ran.code == 0, ran.err
    with np.load("found/examples.npz") as kept:
        right, felled = kept["before"] == kept["y"], kept["felled"]
        assert right.mean() >= 0.7 and felled.any() and (kept["after"] != kept["y"])[felled].all()


def one_line(ran: Any) -> bool:
    """Exit code 2 and one error, perhaps after the warning that code from outside runs."""
    errors = [line for line in ran.err.splitlines() if not line.startswith("warning: nets_of_means:")]
    return ran.code == 2 and not ran.out and len(errors) == 1 and errors[0].startswith("error: ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mean", "imagenet"], "--mean has 3 numbers, but the images have 1 channel"),
        (["--mean", "imagnet"], "--mean 'imagnet': write a number"),
        (["--mean", "0.5"], "--mean without --std"),
        (["--std", "0"], "--std without --mean"),
        (["--mean", "0", "--std", "0"], "above 0"),
        (["--abstain", "first"], "unknown value of --abstain 'first'"),
        (["--abstain", "last"], "10 logits: --abstain last needs 11"),
    ],
)
def test_what_does_not_fit_is_one_line(nets: Any, words: list[str], says: str) -> None:
    ran = nets("evaluate", *SHORT, "--model", "nets_of_means:plain", *words)
    assert one_line(ran) and says in ran.err and not Path("records").exists()


def test_a_run_takes_it_unless_its_network_normalises(nets: Any, run_folder: Path) -> None:
    assert evaluated(nets, "--model", run_folder, "--mean", "digits")["model"]["mean"] == [0.3053]
    ran = nets("evaluate", *SHORT, "--model", "torchvision:resnet18:random", "--mean", "imagenet")
    assert ran.is_one_clear_line and "normalises its images itself" in ran.err


def test_models_that_may_reject_are_measured_and_compared_by_themselves(nets: Any) -> None:
    half, model = ("--mean", "half"), "nets_of_means:rejecting"
    ran = nets("evaluate", *SHORT, "--model", model, *half)
    assert one_line(ran) and "use --abstain last" in ran.err
    one = evaluated(nets, "--model", model, *half, "--abstain", "last")
    other = evaluated(nets, "--model", "nets_of_means:plain", *half)
    assert one["model"]["abstain"] == "last" and one["clean"] < other["clean"]
    again = nets("evaluate", "--again", one["path"], "--model", model, "--json")
    assert again.code == 0 and json.loads(again.out)["same"] is True
    assert "models may reject" in Path("board/digits-linf.md").read_text()
    ran = nets("compare", other["path"], "--baseline", one["path"], "--fail-if", "clean < baseline - 1")
    assert ran.code == 2 and "one that may not; a model that may reject (--abstain last)" in ran.err + ran.out
    assert "--abstain last" in ran.err + ran.out and "--mean 0.5 --std 0.5" in ran.err + ran.out


def test_points_of_a_model_that_rejects_nothing_are_tried_on_one_that_does(nets: Any) -> None:
    words = ("--set", "source=nets_of_means:plain", "--set", "steps=10", "--eps", "0,0.3")
    found = evaluated(nets, "--model", "nets_of_means:rejecting", "--abstain", "last", *words, attack="transfer")
    assert 0 < found["curve"][1]["robust"] < found["curve"][0]["robust"]


def test_a_rejected_image_is_called_so(nets: Any) -> None:
    words = ("attack", "--model", "nets_of_means:rejecting", "--dataset", "digits", "--eps", "0.2", "-n", "30")
    ran = nets(*words, "--mean", "half", "--abstain", "last", "--device", "cpu", "--out", "found", "--json")
    assert ran.code == 0, ran.err
    with np.load("found/examples.npz") as kept:
        assert not np.isin(kept["after"][kept["felled"]], [10]).any()
        assert (kept["before"] == 10).any() and ",rejected," in Path("found/examples.csv").read_text()
