"""`advbench train`: flags, defaults, files, interruption."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from advbench.checkpoint import read_card
from advbench.cli import train as train_module
from advbench.defaults.run_folders import choose_data, place_runs
from advbench.recipe import Recipe
from advbench.signals import SIGNALS

QUICK = ["--dataset", "digits", "--arch", "mlp", "--epochs", "1", "--batch-size", "64"]
QUICK += [word for field in ("train_n=256", "validation.n=32", "inner.steps=1") for word in ("--set", field)]


def test_every_flag_reaches_the_function(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(train_module, "train", lambda flags, screen: seen.append({**asdict(flags), "screen": screen}))
    argv = shlex.split(
        "train --method act,trades --eps 4/255,8/255 --dataset mnist --arch lenet5 --norm l2 --epochs 3 "
        "--batch-size 16 --lr 0.2 --init w.pt --name mine --seed 1,2 --dry-run --log tensorboard --device cpu "
        "--precision fp32 --set awp.gamma=0.005 --set method.beta=3 --preset paper --grid optim.lr=1,2 --select clean "
        "--config r.toml --out o "
        "--resume --force --on local --json"
    )
    assert cli(*argv).code == 0
    (given,) = seen
    assert given.pop("screen").as_json
    assert given == {
        "methods": ["act", "trades"],
        "eps": ["4/255", "8/255"],
        "seeds": [1, 2],
        "dataset": "mnist",
        "arch": "lenet5",
        "norm": "l2",
        "recipe": {"epochs": 3, "batch_size": 16, "optim.lr": 0.2, "init": "w.pt"},
        "sets": ["awp.gamma=0.005", "method.beta=3"],
        "preset": "paper",
        "grid": ["optim.lr=1,2"],
        "select": "clean",
        "config": Path("r.toml"),
        "device": "cpu",
        "precision": "fp32",
        "out": Path("o"),
        "name": "mine",
        "resume": True,
        "force": True,
        "dry_run": True,
        "log": "tensorboard",
        "on": "local",
    }


def test_without_flags_nothing_is_given(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(train_module, "train", lambda flags, screen: seen.append({**asdict(flags), "screen": screen}))
    cli("train")
    (given,) = seen
    del given["screen"]
    usual = {"device": "auto", "precision": "auto", "on": "local"}
    empty = {"recipe": {"epochs": None, "batch_size": None, "optim.lr": None, "init": None}}
    assert {key: value for key, value in given.items() if value} == usual | empty


@pytest.mark.parametrize(
    ("dataset", "arch", "cuda", "chosen"),
    [
        (None, None, False, ("digits", "small_cnn")),
        (None, None, True, ("cifar10", "resnet18")),
        (None, "mlp", True, ("digits", "mlp")),
        ("mnist", None, True, ("mnist", "small_cnn")),
        ("cifar100", None, False, ("cifar100", "resnet18")),
        ("npz:x.npz", None, False, ("npz:x.npz", "resnet18")),
        ("svhn", "mlp", False, ("svhn", "mlp")),
    ],
)
def test_default_dataset_and_architecture(
    dataset: str | None, arch: str | None, cuda: bool, chosen: tuple[str, str]
) -> None:
    assert choose_data(dataset, arch, cuda=cuda)[:2] == chosen


def test_default_folders_are_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.resolve(method="act", eps="8/255")
    name = Path("runs/act-digits-small_cnn-linf-8_255-s0")
    (first,) = place_runs([recipe], None, resume=False, force=False)
    assert first.out == name and not first.going_on
    name.mkdir(parents=True)
    (name / "recipe.toml").write_text(recipe.to_toml())
    (second,) = place_runs([recipe], None, resume=False, force=False)
    assert second.out == name.with_name(name.name + "-2")
    (resumed,) = place_runs([recipe], None, resume=True, force=False)
    assert resumed.out == name
    other = Recipe.resolve(method="act", eps="8/255", flags={"epochs": 7})
    (third,) = place_runs([other], None, resume=True, force=False)
    assert third.out == name.with_name(name.name + "-2")


def test_a_run_its_first_line_and_its_folder(cli: Any) -> None:
    ran = cli("train", "--method", "pgd-at", "--eps", "0.1", *QUICK)
    assert ran.code == 0
    name = "runs/pgd-at-digits-mlp-linf-0.1-s0"
    first, last = ran.out.splitlines()
    assert first.startswith("pgd-at on digits with mlp (given), linf eps 0.1, 1 epoch, seed 0, on ")
    assert first.endswith(f"into {name}")
    assert last.startswith("trained in ") and last.endswith(name)
    assert "epoch 1/1  loss" in ran.err
    assert {"model.safetensors", "last.safetensors", "recipe.toml", "metrics.jsonl", "run.json"} <= {
        path.name for path in (cli.folder / name).iterdir()
    }
    again = cli("train", "--method", "pgd-at", "--eps", "0.1", *QUICK)
    assert again.out.splitlines()[0].endswith(f"into {name}-2")
    resumed = cli("train", "--method", "pgd-at", "--eps", "0.1", *QUICK, "--resume")
    assert resumed.code == 0 and f"{name}-2 is finished" in resumed.err
    taken = cli("train", "--method", "pgd-at", "--eps", "0.1", *QUICK, "--out", name)
    assert taken.code == 2 and "--resume" in taken.err and "--force" in taken.err
    forced = cli("train", "--method", "standard", "--eps", "0.1", *QUICK, "--out", name, "--force")
    assert forced.code == 0 and read_card(cli.folder / name).method == "standard"


def test_a_product_is_one_folder_each_and_finished_ones_are_skipped(cli: Any) -> None:
    argv = ["train", "--method", "pgd-at,standard", "--eps", "0.1,0.2", "--seed", "0,3", *QUICK, "--out", "sweep"]
    ran = cli(*argv, "--json")
    assert ran.code == 0
    names = {f"{m}-digits-mlp-linf-{e}-s{s}" for m in ("pgd-at", "standard") for e in ("0.1", "0.2") for s in (0, 3)}
    assert {path.name for path in (cli.folder / "sweep").iterdir()} == names
    runs = [json.loads(line) for line in ran.out.splitlines()]
    assert [Path(run["run"]).name for run in runs] == sorted(
        names, key=lambda name: (name[0] != "p", "0.2-" in name, "s3" in name)
    )
    assert all(run["finished"] and run["files"] for run in runs)
    stamps = {path: path.stat().st_mtime_ns for path in (cli.folder / "sweep").glob("*/run.json")}
    resumed = cli(*argv, "--resume")
    assert resumed.code == 0 and resumed.err.count("is finished: nothing to do") == 8
    assert {path: path.stat().st_mtime_ns for path in (cli.folder / "sweep").glob("*/run.json")} == stamps


def test_a_preset_is_each_methods_own_and_its_run_needs_no_preset(cli: Any) -> None:
    argv = ["train", "--method", "act,trades", "--preset", "paper", *QUICK, "--eps", "0.1", "--out", "runs"]
    assert cli(*argv).code == 0
    folders = [cli.folder / "runs" / f"{name}-digits-mlp-linf-0.1-s0" for name in ("act", "trades")]
    act, trades = (Recipe.load(folder / "recipe.toml") for folder in folders)
    assert (act.schedule.factor, trades.schedule.factor) == (0.2, 0.1)
    assert (act.optim.weight_decay, trades.optim.weight_decay) == (5e-4, 2e-4)
    assert act.epochs == trades.epochs == 1 and act.batch_size == 64  # flags win
    assert read_card(folders[0]).results["best"] == read_card(folders[0]).results["last"]  # no image was held out
    resumed = cli("train", "--resume", "--out", str(folders[0]))
    assert resumed.code == 0 and "is finished" in resumed.err
    other = cli("train", "--resume", "--out", str(folders[1]), "--method", "trades", *QUICK, "--eps", "0.1")
    assert other.code == 2 and "another recipe" in other.err and "weight_decay" in other.err
    for name, message in (("act,standard", "of standard 'paper': there are none"), ("n-fgsm", "choose from paper")):
        refused = cli("train", "--method", name, "--preset", "paper" if "," in name else "rice", *QUICK)
        assert refused.is_one_clear_line and message in refused.err


OTHERS = {"steps": "3", "rel_step": "0.5", "step_size": "0.02", "init": "none", "warmup": "0.5"}


@pytest.mark.parametrize("method", ["standard", "n-fgsm", "free-at", "fast-at", "pgd-at", "center-loss"])
def test_what_a_method_does_not_use_is_said(cli: Any, method: str) -> None:
    """It changes no weight, and all else of the inner attack does."""
    argv = ("train", "--method", method, *QUICK, "--eps", "0.1", "--epochs", "2")
    assert cli(*argv, "--out", "plain").code == 0
    for name, value in OTHERS.items():
        given = cli(*argv, "--set", f"inner.{name}={value}", "--out", name)
        assert given.code == 0, given
        same = (
            read_card(Path(name)).weights["model.safetensors"] == read_card(Path("plain")).weights["model.safetensors"]
        )
        assert same is (f"{method} does not use inner.{name}" in given.err), (name, given.err)


def test_the_natural_net_of_act_is_a_source_of_transfer_attacks(cli: Any) -> None:
    assert cli("train", *QUICK, "--set", "method.natural_arch=lenet5", "--eps", "0.1", "--out", "run").code == 0
    natural = "run/parts/natural.safetensors"
    argv = ["--attack", "transfer", "--set", f"source={natural}", "--set", "steps=2", "--eps", "0,0.1", "-n", "20"]
    ran = cli("evaluate", "--model", "run", *argv, "--probes", "off", "--json")
    assert ran.code == 0
    (attack,) = json.loads(ran.out)["attack"]
    assert attack["settings"]["source"] == natural
    alone = cli("evaluate", "--model", natural, "--attack", "fgsm", "--eps", "0", "-n", "20", "--json")
    assert json.loads(alone.out)["model"]["arch"] == "lenet5"


def test_the_forms_of_great_train_and_deploy_the_net_alone(cli: Any) -> None:
    great = ["train", "--method", "great", *QUICK, "--set", "model.width=16"]
    assert cli("train", "--method", "standard", *QUICK, "--out", "teacher").code == 0
    distillation = ["--set", "method.form=distillation", "--set", "method.teacher=teacher"]
    for name, form in {
        "student": [*distillation, "--set", "method.soft=1"],
        "tasks": ["--set", "method.form=multi-task"],
    }.items():
        assert cli(*great, *form, "--out", name).code == 0
        ran = cli("evaluate", "--model", name, "--attack", "fgsm", "--eps", "0,0.1", "-n", "20", "--probes", "off")
        assert ran.code == 0, ran.err
    refused = cli(*great, "--set", "method.form=distillation", "--set", "method.T=0", "--out", "none")
    assert refused.is_one_clear_line and "method.T" in refused.err


def test_dry_run_is_a_recipe_that_config_takes(cli: Any) -> None:
    ran = cli("train", "--method", "trades", "--set", "method.beta=3", *QUICK, "--dry-run")
    assert ran.code == 0 and ran.err == "" and cli.files() == set()
    tree = tomllib.loads(ran.out)
    assert tree["method"] == {"name": "trades", **{k: v for k, v in tree["method"].items() if k != "name"}}
    assert tree["method"]["beta"] == 3 and tree["epochs"] == 1
    assert re.search(r"# about .* forward and .* backward passes an image", ran.out)
    (cli.folder / "recipe.toml").write_text(ran.out)
    again = cli("train", "--config", "recipe.toml", "--dry-run", "--json")
    assert json.loads(again.out)["recipe"] == tree
    assert json.loads(again.out)["estimate"]["epochs"] == 1


def test_tensorboard_without_its_package(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ran = cli("train", *QUICK, "--log", "tensorboard")
    assert ran.is_one_clear_line and "pip install tensorboard" in ran.err and cli.files() == set()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard: pip install '.[log]'")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from tensorboard's own imports
def test_what_tensorboard_reads(cli: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli("train", "--method", "trades", *QUICK, "--epochs", "2", "--log", "tensorboard", "--out", "run").code == 0
    found = EventAccumulator(str(cli.folder / "run" / "tensorboard"))
    found.Reload()
    rows = [json.loads(line) for line in (cli.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = {"loss": [row["loss"] for row in rows], "kl": [row["terms"]["kl"] for row in rows]}
    expected |= {name: [row[name] for row in rows] for name in ("clean", "robust", "lr")}
    for name, values in expected.items():
        assert [(event.step, event.value) for event in found.Scalars(name)] == [
            (epoch, pytest.approx(value, rel=1e-5)) for epoch, value in enumerate(values, 1)
        ]


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted_and_resumed(tmp_path: Path, number: signal.Signals, forked: str) -> None:
    """The real program, at Ctrl-C, and real signals. The command line that it prints, once, resumes the run."""
    argv = ["train", "--method", "standard", "--seed", "5", *QUICK, "--epochs", "30", "--set", "train_n=1024"]
    program = [sys.executable if number == signal.SIGINT else forked, "-m", "advbench"]
    with subprocess.Popen(
        [*program, *argv], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/*/run.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and err.count("continue") == 1, err
    assert "Traceback" not in err
    command = err.splitlines()[-1].partition("continue with: ")[2]
    (run,) = tmp_path.glob("runs/*")
    assert shlex.split(command) == ["advbench", *argv, "--out", f"runs/{run.name}", "--resume"]
    assert not read_card(run).finished
    ran = subprocess.run(
        [*program, *shlex.split(command)[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "resuming after epoch" in ran.stderr
    assert read_card(run).finished and len((run / "metrics.jsonl").read_text().splitlines()) == 30


def test_what_a_finished_run_says_of_training_it_again(cli: Any) -> None:
    short = ("train", "--method", "pgd-at", "--dataset", "digits", "--arch", "mlp", "--epochs", "1")
    few = ("--set", "train_n=64", "--set", "validation.fraction=0.2", "--set", "validation.select=last")
    first = cli(*short, *few)
    assert first.code == 0 and "choose the best epoch" not in first.err
    (folder,) = Path("runs").iterdir()
    again = cli(*short, *few, "--resume", "--name", "other")
    assert f"(--force with --out {folder} trains it again; its name stays, --name is for a new run)" in again.err
    both = cli(*short, *few, "--resume", "--force")
    assert both.is_one_clear_line and "choose one" in both.err


def test_weights_that_the_last_update_made_infinite_are_not_saved(cli: Any) -> None:
    large = ("--lr", "1e30", "--set", "optim.weight_decay=1e30", "--set", "schedule.name=constant")
    one = ("--epochs", "1", "--batch-size", "64", "--set", "train_n=64", "--set", "validation.fraction=0", *large)
    ran = cli("train", "--method", "standard", "--dataset", "digits", "--arch", "mlp", *one, "--out", "run")
    assert ran.code == 2 and "the last update made weights that are not finite" in ran.err
    assert not Path("run/model.safetensors").exists() and not Path("run/run.json").exists()
