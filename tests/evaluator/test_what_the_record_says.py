"""The record of attacks with further parts: sources of transfer, frequency bands, targets, centres of features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from advbench.cli.attack import Flags
from advbench.cli.attack import attack as run_attack
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.evaluator import Settings, evaluate
from advbench.models import build
from advbench.models.base import Model


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(24))


def linear(seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build("linear", num_classes=10, in_channels=1, image_size=8)
    train = load("digits", "train")
    x, y = train.batch(slice(0, 600))
    centres = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
    weights = net.state_dict()
    (weight,) = (name for name in weights if name.endswith("weight"))
    (bias,) = (name for name in weights if name.endswith("bias"))
    weights[weight] = 2 * centres + 0.01 * torch.randn(centres.shape, generator=torch.Generator().manual_seed(seed))
    weights[bias] = -(centres**2).sum(1)
    net.load_state_dict(weights)
    return net.eval()


def test_a_transfer_attack_needs_a_source(digits: Dataset) -> None:
    with pytest.raises(UserError, match="transfer needs the model on which it searches for points: --set source=MODEL"):
        evaluate(linear(0), digits, Settings(attack="transfer", eps=["0.1"]))


def test_two_sources_are_two_questions(digits: Dataset, tmp_path: Path) -> None:
    for seed in (1, 2):
        metadata = {
            "advbench": json.dumps(
                {
                    "arch": "linear",
                    "num_classes": 10,
                    "in_channels": 1,
                    "image_size": 8,
                    "settings": {},
                    "wrappers": [],
                }
            )
        }
        save_file(linear(seed).state_dict(), tmp_path / f"{seed}.safetensors", metadata=metadata)
    net = linear(0)
    records = []
    for seed in (1, 2, 1):
        (tmp_path / "here.safetensors").write_bytes((tmp_path / f"{seed}.safetensors").read_bytes())
        settings = {"source": f"{tmp_path}/here.safetensors", "steps": 3}
        records.append(evaluate(net, digits, Settings(attack="transfer", eps=["0.1"], attack_settings=settings)).record)
    first, second, third = records
    hashes = [record.attack[0].settings["source_sha256"] for record in records]
    assert hashes[0] == hashes[2] != hashes[1]
    assert first.question == third.question != second.question
    with pytest.raises(UserError, match="name the one that was meant"):
        evaluate(
            net,
            digits,
            Settings(attack="transfer", eps=["0.1"], attack_settings={**settings, "source_sha256": hashes[1]}),
        )


def test_energy_outside_of_the_band_is_noted(digits: Dataset) -> None:
    settings = {"band": "0,0.25", "steps": 5}  # as --set band=0,0.25 gives it
    record = evaluate(
        linear(0), digits, Settings(attack="pgd", eps=["0.05", "0.4"], norm="fourier-linf", attack_settings=settings)
    ).record
    flags = {flag.name: flag for flag in record.flags}
    assert flags["band-leak"].severity == flags["spectrum"].severity == "note"
    # Digits reach both ends of [0, 1], and clipping to it brings back high frequencies, of which the rounds of the
    # projection leave next to nothing.
    share = float(flags["band-leak"].detail.split("%")[0].split()[-1])
    assert 0 <= share < 1
    most = float(flags["spectrum"].detail.split("at most ")[1].split()[0])
    assert 0.5 < most <= 1.001


def test_an_attack_on_a_target_says_how_many_reached_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(linear(0).state_dict(), tmp_path / "net.safetensors")
    flags = Flags(
        model="net.safetensors", attack="pgd", eps="0.3", n=24, dataset="digits", arch="linear", device="cpu",
        settings={"target": 3, "loss": "cw", "steps": 20}, out=tmp_path / "out",
    )  # fmt: skip
    examples = run_attack(flags)
    right = examples.before == examples.y
    at = examples.felled & right & (examples.after == 3)
    assert examples.counts["reached"] == at.sum() > 0
    assert examples.counts["reached"] <= examples.counts["felled"]


def test_features_pulled_to_a_centre_fell_about_as_many_as_the_margin_does(digits: Dataset) -> None:
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0)
    train = load("digits", "train")
    x, y = train.batch(slice(0, 600))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(60):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
    net.eval()
    robust = [
        evaluate(net, digits, Settings(attack=name, eps=["0.15"], attack_settings={"steps": 20})).record.curve[0].robust
        for name in ("feature-pgd", "apgd-ce")
    ]
    clean = evaluate(net, digits, Settings(attack="fgsm", eps=["0"])).record.curve[0].robust
    assert robust[1] <= robust[0] < clean
    with pytest.raises(UserError, match="one of the zoo's"):
        evaluate(torch.nn.Sequential(net), digits, Settings(attack="feature-pgd", eps=["0.15"]))
