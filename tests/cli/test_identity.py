"""One thing is one thing, however it is spelled, and two are two: code, journals, spellings, finished runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from advbench.checkpoint import read_card
from advbench.cli import keep
from advbench.cli.watch import ScreenWatch
from advbench.data import load
from advbench.files import plain_path
from advbench.record import load_record

NET = """
import os
import torch
from torch import nn
from advbench.data import load
from means_change import change

class Means(nn.Module):
    def __init__(self):
        super().__init__()
        x, y = load("digits", "train").batch(slice(None))
        means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
        self.register_buffer("weight", 10 * means)
        self.register_buffer("bias", -5 * means.square().sum(1))
        self.turned = "TURNED" in os.environ

    def forward(self, x):
        x = change(x).flip(-1) if self.turned else change(x)
        return nn.functional.linear(x.flatten(1), self.weight, self.bias)
"""
SHORT = ["--eps", "0,0.1", "-n", "40", "--attack", "fgsm"]


def records(folder: Path) -> list[Any]:
    return [load_record(path)[0] for path in sorted(folder.rglob("records/*/*/*.json"))]


def test_a_model_whose_code_changed_is_measured_again(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is in a module that the named one imports; the weights stay equal."""
    (cli.folder / "means_net.py").write_text(NET)

    def evaluate(change: str) -> tuple[bool, Any]:
        """Whether it was measured before, and the record."""
        (cli.folder / "means_change.py").write_text(f"def change(x): return {change}\n")
        for name in ("means_net", "means_change"):  # as in another process
            sys.modules.pop(name, None)
        ran = cli("evaluate", "--model", "means_net:Means", "--dataset", "digits", *SHORT, "--resume")
        assert ran.code == 0, ran.err
        path = Path(ran.out.splitlines()[-1].removeprefix("record "))
        return "measured before" in ran.out, load_record(path)[0]

    seen, honest = evaluate("x")
    assert not seen
    seen, turned = evaluate("x.flip(-1)")
    assert not seen and turned.clean < honest.clean - 0.2
    assert turned.model.weights_sha256 == honest.model.weights_sha256
    assert turned.model.code_sha256 != honest.model.code_sha256 and turned.question != honest.question
    refused = cli("evaluate", "--again", next(cli.folder.rglob(f"{honest.id}.json")), "--trust-code")
    assert refused.code == 2 and "code of means_net:Means has changed" in refused.err
    seen, again = evaluate("x")
    assert seen and again.id == honest.id
    monkeypatch.setenv("TURNED", "1")  # code can differ where no file does
    seen, same_files = evaluate("x")
    assert not seen and same_files.question == honest.question and same_files.clean == turned.clean


def test_a_module_in_the_current_folder_is_found_alike(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (cli.folder / "found_here.py").write_text("from advbench.models.mlp import MLP\nclass Mine(MLP): pass\n")
    train = ["train", "--arch", "found_here:Mine", "--method", "pgd-at", "--epochs", "1", "--set", "train_n=128"]
    for argv in (
        [*train, "--out", "runs/a"],
        ["evaluate", "--arch", "found_here:Mine", "--attack", "fgsm", "-n", "5"],
        ["attack", "--model", "runs/a", "--arch", "found_here:Mine", "-n", "5"],
    ):
        with monkeypatch.context() as patch:  # as the installed command starts, without the current folder
            patch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(cli.folder))])
            sys.modules.pop("found_here", None)
            ran = cli(*argv)
        assert ran.code == 0, ran.err
    (record,) = records(cli.folder)
    assert record.model.code_sha256 is not None


def interrupting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the search at its third round."""
    rounds = iter(range(100))
    stop = lambda forecast: os.kill(os.getpid(), signal.SIGINT) if next(rounds) == 4 else None  # noqa: E731
    monkeypatch.setattr(keep, "search_progress", lambda *_: stop)


def test_interrupted_evaluations_of_one_model_do_not_meet(
    cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["evaluate", "-n", "40", "--attack", "square", "--set", "n_queries=30", "--eps", "0.1"]
    asked = [["--seed", "1"], ["--seed", "2"], ["--set", "n_queries=31"], ["--precision", "fp32"], ["-n", "39"]]
    for more in asked:
        with monkeypatch.context() as patch:
            interrupting(patch)
            assert cli(*base, *more).code == 3
    folder = cli.folder / "runs/a/records"
    assert len(list(folder.glob(".*.journal"))) == len(asked)
    for left, more in enumerate(reversed(asked), start=1):
        whole = cli(*base, *more, "--out", "whole", "--json")
        resumed = cli(*base, *more, "--resume", "--json")
        assert json.loads(resumed.out)["id"] == json.loads(whole.out)["id"]
        assert len(list(folder.glob(".*.journal"))) == len(asked) - left


def test_interrupted_attacks_do_not_meet(cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["attack", "-n", "40", "--attack", "square", "--set", "n_queries=30"]
    with monkeypatch.context() as patch:
        interrupting(patch)
        stopped = cli(*argv)
    assert stopped.code == 3
    assert cli(*argv, "--seed", "1").code == 0
    out = "attacks/square-a-digits-linf-0.1"
    assert (cli.folder / f"{out}-2/attack.json").exists() and not (cli.folder / out).exists()
    assert cli(*argv, "--resume").code == 0 and (cli.folder / out / "attack.json").exists()
    assert not list((cli.folder / "attacks").glob(".*.journal"))
    before = (cli.folder / out / "attack.json").read_bytes()
    refused = cli(*argv, "--seed", "2", "--out", out, "--resume")
    assert refused.is_one_clear_line and "finished attack" in refused.err
    assert (cli.folder / out / "attack.json").read_bytes() == before
    assert cli(*argv, "--eps", "0.10", "--force", "--out", out).code == 0


@pytest.fixture
def pictures(cli: Any) -> Path:
    """Ten digits in the folder `data`, two classes."""
    digits = load("digits", "test")
    for split in ("train", "test"):
        for row in range(40):
            label = int(digits.labels[row])
            if label < 2:
                folder = cli.folder / "data" / split / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray((digits.images[row, 0] * 15).numpy().astype(np.uint8)).save(folder / f"{row}.png")
    torch.save(torch.nn.Linear(1, 1).state_dict(), cli.folder / "x.pt")
    (cli.folder / "flat_net.py").write_text(
        "import torch\nfrom torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))\n"
    )
    return cli.folder / "data"  # type: ignore[no-any-return]


def test_the_spelling_of_a_folder_is_no_identity(cli: Any, pictures: Path) -> None:
    found = []
    for spelling in ("data", "data/", "./data", "data/../data", pictures, f"{pictures}/"):
        ran = cli(
            "evaluate", "--model", "flat_net:net", "--dataset", f"imagefolder:{spelling}", "--attack", "fgsm",
            "--eps", "0.1", "--leaderboard", "board", "--json",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        found.append(json.loads(ran.out))
    assert {one["dataset"]["name"] for one in found} == {"imagefolder:data"}
    assert len({one["id"] for one in found}) == 1 and len(list((cli.folder / "board").glob("*.csv"))) == 1


def test_the_spelling_of_a_run_is_no_identity(cli: Any, run_folder: Path) -> None:
    specs = set()
    for spelling in ("runs/a", "runs/a/", "./runs//a", cli.folder / "runs/a"):
        ran = cli("evaluate", "--model", spelling, *SHORT, "--json")
        assert ran.code == 0, ran.err
        specs.add(json.loads(ran.out)["model"]["spec"])
    assert specs == {"runs/a"} and len(records(cli.folder)) == 1


def test_the_spelling_of_eps_is_no_identity(cli: Any, run_folder: Path) -> None:
    for spelling in ("0.1", "0.10", "1/10", "1e-1"):
        assert cli("evaluate", "--eps", spelling, *SHORT[2:]).code == 0
    (record,) = records(cli.folder)
    assert record.curve[0].eps_text == "0.1"
    train = ["train", "--method", "standard", "--dataset", "digits", "--arch", "mlp", "--epochs", "1"]
    train += ["--set", "train_n=128"]
    assert cli(*train, "--eps", "0.1,0.10,1/10").code == 0
    (run,) = (cli.folder / "runs").glob("standard-*")
    assert run.name.endswith("linf-0.1-s0")
    written = (run / "run.json").read_bytes()
    assert "is finished" in cli(*train, "--eps", "1/10", "--resume").err
    assert (run / "run.json").read_bytes() == written
    assert cli(*train, "--eps", "0.10", "--out", "b").code == 0
    first, second = read_card(run), read_card(cli.folder / "b")
    assert (first.eps_text, second.eps_text) == ("0.1", "0.10") and first.recipe_sha256 == second.recipe_sha256


def test_a_finished_run_without_its_state_is_left_as_it_is(cli: Any, run_folder: Path) -> None:
    folder = cli.folder / "runs/a"
    shutil.rmtree(folder / "train_state")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    recipe = ["train", "--config", "runs/a/recipe.toml", "--out", "runs/a", "--resume"]
    ran = cli(*recipe)
    assert ran.code == 0 and "is finished: nothing to do" in ran.err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_unfinished_run_without_its_state_is_not_trained_over(
    cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ["train", "--config", "runs/a/recipe.toml", "--out", "b", "--epochs", "9"]
    with monkeypatch.context() as patch:
        polls = iter(range(10**9))
        patch.setattr(ScreenWatch, "stop", lambda self: next(polls) > 40)
        assert cli(*recipe).code == 3
    shutil.rmtree(cli.folder / "b/train_state")
    before = {path: path.read_bytes() for path in (cli.folder / "b").iterdir() if path.name != ".lock"}
    refused = cli(*recipe, "--resume")
    assert refused.code == 2 and "state.bin is missing" in refused.err and "--force" in refused.err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_passes_that_nobody_counted_are_shown_as_such(cli: Any, run_folder: Path) -> None:
    (cli.folder / "noise.py").write_text("def attack(model, x, y, eps): return (x + eps).clamp(0, 1)\n")
    argv = ["evaluate", *SHORT[:4], "--attack", "noise:attack"]
    assert "passes not counted" in cli(*argv).out
    found = json.loads(cli(*argv, "--json").out)
    assert (found["forwards"], found["backwards"]) == (None, None)


def test_a_random_models_record_is_the_same_command_by_command(cli: Any) -> None:
    (cli.folder / "noisy_net.py").write_text(
        NET.replace("from means_change import change", "change = lambda x: x + 0.6 * torch.randn_like(x)")
    )
    argv = ["evaluate", "--model", "noisy_net:Means", "--dataset", "digits", *SHORT, "--json"]
    found = []
    for seed in ("0", "0", "1"):
        torch.rand(11), np.random.rand(3)
        found.append(load_record(Path(json.loads(cli(*argv, "--seed", seed).out)["path"])))
    (first, fates), (again, _), (_, others) = found
    assert again.id == first.id and not np.array_equal(fates.fell, others.fell)


def test_one_spelling_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / "link")
    inside = tmp_path / "link" / "data"
    assert {plain_path(text) for text in ("data", "data/", "./x/../data", str(inside), str(inside.resolve()))} == {
        "data"
    }
    assert plain_path("..") == str(tmp_path) and plain_path(".") == "."
