"""Wrong input: exit code 2, one line that names the valid choices, and nothing written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advbench.checkpoint import load_train_state, read_card, save_train_state, write_card
from advbench.files import write_sealed

EPS = {
    "8": "8/255 was probably meant",
    "8/0": "divides by zero",
    "-1/255": "a fraction such as 8/255",
    "abc": "a fraction such as 8/255",
    "1.5": "lies in [0, 1]",
    "": "a fraction such as 8/255",
}
COMMANDS = ("train", "evaluate", "attack")


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("command", COMMANDS)
def test_eps_that_is_not_a_size(cli: Any, tmp_path: Path, command: str, eps: str) -> None:
    ran = cli(command, "--eps", eps)
    assert ran.is_one_clear_line and (EPS[eps] in ran.err or not eps)
    assert cli.files() == set()


@pytest.mark.parametrize("flag", ["--out", "--name", "--save-baseline", "--model"])
def test_a_word_that_is_no_utf_8(cli: Any, run_folder: Path, flag: str) -> None:
    before = cli.files()
    ran = cli("evaluate", "--attack", "fgsm", "-n", "5", flag, "b\udce9.json")
    assert ran.is_one_clear_line and "'b\\udce9.json' is no UTF-8" in ran.err and cli.files() == before


@pytest.mark.parametrize(
    "words", [["evaluate", "--out", ""], ["train", "-o", " "], ["evaluate", "--leaderboard="], ["leaderboard", ""]]
)
def test_an_empty_folder_is_not_the_current_one(cli: Any, run_folder: Path, words: list[str]) -> None:
    before = cli.files()
    ran = cli(*words)
    assert ran.is_one_clear_line and "is empty, as of an unset variable" in ran.err and cli.files() == before


@pytest.mark.parametrize("eps", ["8", "1.5"])
def test_eps_above_1_for_the_newest_run(cli: Any, run_folder: Path, tmp_path: Path, eps: str) -> None:
    before = cli.files()
    ran = cli("evaluate", "--eps", eps)
    assert ran.is_one_clear_line and "lies in [0, 1]" in ran.err
    assert cli.files() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--method", "pgdat"], "did you mean pgd-at"),
        (["train", "--method", "act,"], "not a comma list"),
        (["train", "--dataset", "cifar"], "did you mean cifar10"),
        (["train", "--arch", "resnet81"], "did you mean resnet18"),
        (["evaluate", "--norm", "L2"], "did you mean l2? "),
        (["train", "--norm", "L2"], "did you mean l2? choose from fourier-linf, l1, l2, linf"),
        (["train", "--norm", "linff"], "linf"),
        (["train", "--device", "gpu"], "choose from auto, cpu, cuda, cuda:N"),
        (["train", "--device", "cuda:99"], "choose from auto, cpu"),
        (["train", "--seed", "one"], "whole numbers"),
        (["train", "--seed", "-1"], "whole numbers"),
        (["train", "--seed", "9" * 5000], "whole numbers"),
        (["train", "--set", f"validation.seed={'9' * 20}"], "validation.seed"),
        (["train", "--set", "validation.seed=-1"], "validation.seed"),
        (["train", "--set", f"inner.steps={10**9}"], "inner.steps"),
        (["train", "--set", "optim.lr=inf"], "optim.lr"),
        (["train", "--set", "method.T=0"], "method.T is '0': it must be above 0"),
        (["train", "--set", "method.a=nan"], "method.a is 'nan': it must be a finite number"),
        (["train", "--set", f"method.a={'9' * 5000}"], "method.a"),
        (["train", "--set", "model=mlp"], "model is a table"),
        (["train", "--epochs", "0"], "--epochs: it must be at least 1"),
        (["train", "--lr", "fast"], "--lr: it must be a number"),
        (["train", "--log", "tensorbord"], "did you mean tensorboard"),
        (["train", "--set", "optim.lrr=1"], "did you mean optim.lr"),
        (["train", "--set", "optim.lr"], "not FIELD=VALUE"),
        (["train", "--set", "method.alpha=1"], "choose from"),
        (["train", "--config", "none.toml"], "cannot read"),
        (["train", "--methd", "act"], "did you mean --method"),
        (["trian"], "did you mean train"),
        (["train", "surplus"], "surplus"),
        (["evaluate"], "--model"),
        (["attack"], "--model"),
        (["evaluate", "--attack", "autoatack"], "did you mean autoattack"),
        (["attack", "--attack", "pdg"], "did you mean pgd"),
        (["evaluate", "--norm", "linfty"], "did you mean linf"),
        (["evaluate", "-n", "0"], "at least 1"),
        (["attack", "-n", "0"], "at least 1"),
        (["evaluate", "-n", "many"], "-n: it must be a whole number"),
        (["evaluate", "--subset", "last"], "first, random:SEED or a file"),
        (["evaluate", "--subset", "random:x"], "first, random:SEED or a file"),
        (["evaluate", "--config", "none.toml"], "cannot read"),
        (["evaluate", "--model", "runs/none"], "no such folder"),
        (["evaluate", "--model", "robustbench:Wong2020"], "did you mean"),
        (["evaluate", "--model", "pyautoattack:model_tst"], "model_test"),
        (["evaluate", "--model", "none.pt", "--dataset", "digits"], "no file none.pt"),
        (["evaluate", "--again", "none.json"], "none.json"),
        (["evaluate", "--set", "steps"], "not FIELD=VALUE"),
        (["attack", "--eps", "1/255,2/255"], "one size"),
        (["list", "method"], "did you mean methods"),
        (["analyze"], "which analysis"),
        (["analyze", "nothing-like-it"], "unknown analysis"),
    ],
    ids=" ".join,
)
def test_names_the_choices(cli: Any, tmp_path: Path, argv: list[str], message: str) -> None:
    ran = cli(*argv)
    assert ran.is_one_clear_line, ran
    assert message in ran.err
    assert cli.files() == set()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate", "-n", "501"], "choose at most 500"),
        (["attack", "-n", "501"], "choose at most 500"),
        (["evaluate", "--set", "stpes=3", "--attack", "pgd"], "did you mean steps"),
        (["evaluate", "--set", "steps=many", "--attack", "pgd"], "steps"),
        (["evaluate", "--set", "rel_step=nan", "--attack", "pgd"], "finite"),
        (["evaluate", "--set", "n_targets=-1", "--attack", "pgd"], "n_targets=-1: it must be at least"),
        (["evaluate", "--set", "n_targets=0", "--attack", "fab-t"], "n_targets=0: it must be at least"),
        (["evaluate", "--set", "steps=true", "--attack", "pgd"], "steps=True"),
        (["evaluate", "--set", "steps=1.5", "--attack", "pgd"], "steps=1.5"),
        (["evaluate", "--set", f"steps={10**30}", "--attack", "pgd"], "it must be at most 1000000"),
        (["evaluate", "--set", f"steps={'9' * 5000}", "--attack", "pgd"], "steps="),
        (["evaluate", "--set", "step_size=-1", "--attack", "pgd"], "step_size=-1"),
        (["evaluate", "--set", "restarts=1000000", "--attack", "pgd"], "1000000 restarts of 500 images are too many"),
        (["evaluate", "--set", "restarts=0", "--attack", "pgd"], "restarts=0"),
        (["analyze", "features", "runs/a", "--set", "steps=-1"], "steps=-1: it must be at least"),
        (["analyze", "features", "runs/a", "-n", "0"], "-n: it must be at least 1"),
        (["evaluate", "--dataset", "imagefolder:/proc/self"], "imagefolder"),
        (["evaluate", "--engine", "theirs"], "own, reference"),
        (["evaluate", "--curve", "slow"], "exact, fast"),
        (["evaluate", "--precision", "fp16"], "auto, bf16, fp32"),
        (["evaluate", "--dataset", "npz:classes.npz"], "3"),
        (["evaluate", "--norm", "l2"], "--eps"),
        (["evaluate", "--model", "empty"], "not a run folder"),
        (["evaluate", "--model", "weights.pt", "--dataset", "digits"], "--trust-pickle"),
        (
            ["evaluate", "--dataset", "npz:colour.npz"],
            "images of 1 channel, npz:colour.npz has 3x8x8",
        ),
        (["evaluate", "--model", "runs/a", "--arch", "resnet18"], "leave out --arch"),
        (["attack", "--out", "empty"], "--force"),
        (["train", "--out", "empty/notes"], "is a file"),
        (["train", "--out", "notes/inside"], "is a file"),
        (["train", "--out", "runs"], "something other than a run"),
        (["train", "--out", "runs/a"], "--resume"),
        (["train", "--method", "act", "--out", "runs/a", "--resume"], "another recipe"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_the_run(cli: Any, run_folder: Path, tmp_path: Path, argv: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes").write_text("mine")
    (tmp_path / "notes").write_text("mine")
    arrays = {"x": np.zeros((4, 3, 8, 8), np.uint8), "y": np.arange(4)}
    np.savez(tmp_path / "colour.npz", **{f"{k}_{s}": v for k, v in arrays.items() for s in ("train", "test")})
    arrays = {"x": np.zeros((3, 1, 8, 8), np.uint8), "y": np.arange(3)}
    split = {f"{k}_{s}": v for k, v in arrays.items() for s in ("train", "test")}
    np.savez(tmp_path / "classes.npz", **split, num_classes=np.array(3))
    torch.save({"weights": Path("not a tensor")}, tmp_path / "weights.pt")
    before = cli.files()
    ran = cli(*argv)
    assert ran.is_one_clear_line, ran
    assert message in ran.err
    assert cli.files() == before


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_checkpoint(cli: Any, run_folder: Path, tmp_path: Path, damage: str) -> None:
    weights = tmp_path / run_folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "altered":
        content[-1] ^= 1
    weights.write_bytes(content if damage == "altered" else content[: len(content) // 2])
    before = cli.files()
    ran = cli("evaluate", "--attack", "pgd")
    assert ran.is_one_clear_line and "sha256" in ran.err
    assert cli.files() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("argv", [["evaluate", "--attack", "pgd", "--out"], ["attack", "--out"], ["train", "--out"]])
def test_no_permission(cli: Any, run_folder: Path, tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    ran = cli(*argv, "shut/out")
    assert ran.is_one_clear_line and "permission" in ran.err


def test_no_permission_is_seen_before_the_work(
    cli: Any, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cli.files()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for argv in (["evaluate", "--attack", "pgd"], ["attack"], ["train"]):
        ran = cli(*argv)
        assert ran.is_one_clear_line and "no permission to write" in ran.err
    assert cli.files() == before


def test_control_characters_in_an_error_are_escaped(cli: Any) -> None:
    ran = cli("evaluate", "--attack", "\x1b[31mred\nline")
    assert ran.is_one_clear_line and "\x1b" not in ran.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1.9]", "whole numbers"),
        ("[true]", "whole numbers"),
        ('["3"]', "whole numbers"),
        ("[[3]]", "whole numbers"),
        ("1.0 2", "whole numbers"),
        ("[1e999]", "whole numbers"),
        ("[NaN]", "whole numbers"),
        ("[" + "9" * 30 + "]", "there is no image"),
        ("[" + "9" * 5000 + "]", "cannot read --subset positions"),
        ("[" * 100_000, "cannot read --subset positions"),
        ("3 x", "cannot read --subset positions"),
        ("[3, 3]", "none twice"),
        ("[-1]", "none below 0"),
        ("", "at least one position"),
        ("\xff", "cannot read --subset positions"),
    ],
)
def test_positions_that_are_none(cli: Any, run_folder: Path, content: str, message: str) -> None:
    (cli.folder / "positions").write_bytes(content.encode("latin-1"))
    ran = cli("evaluate", "--subset", "positions", "--attack", "fgsm")
    assert ran.is_one_clear_line and message in ran.err


def test_positions_in_either_form(cli: Any, run_folder: Path) -> None:
    for content in ("[3, 0]", "3,0", "3\n0\n"):
        (cli.folder / "positions").write_text(content)
        assert "2 images of positions" in cli("evaluate", "--subset", "positions", "--attack", "fgsm").out


@pytest.mark.parametrize("content", ["x = " + "[" * 50_000, "x = " + "9" * 5000, "= 1", "\xff", "seed = 2001-01-01"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_config_that_cannot_be_read(cli: Any, command: str, content: str) -> None:
    (cli.folder / "c.toml").write_bytes(content.encode("latin-1"))
    assert cli(command, "--config", "c.toml").is_one_clear_line


def test_a_training_state_that_is_none(cli: Any, run_folder: Path) -> None:
    """Sealed, as by another development version, and not what is read here."""
    card = cli.folder / run_folder / "run.json"
    write_card(card.parent, read_card(card.parent).model_copy(update={"finished": False}))
    argv = ["train", "--config", run_folder / "recipe.toml", "--out", run_folder, "--resume", "--device", "cpu"]
    state = load_train_state(card.parent)
    for wrong in (b"", b"x", pickle.dumps(3), pickle.dumps({"a": Path("x")})):
        write_sealed(card.parent / "train_state/state.bin", wrong)
        assert cli(*argv).err.startswith("error: cannot read runs/a/train_state/state.bin; start over with --force: ")
    for name in ("data_sha256", "epoch", "sums", "f", "optimizers", "history", "rng"):
        save_train_state(card.parent, {key: value for key, value in state.items() if key != name})
        ran = cli(*argv)
        assert ran.code == 2 and ran.err.splitlines()[-1].startswith("error: cannot read the training state"), name
    save_train_state(card.parent, state)
    assert cli(*argv).code == 0


def test_batches_of_one_image(cli: Any) -> None:
    """BatchNorm cannot be trained on one value of a channel; a net without it can."""
    argv = [
        "train",
        "--dataset",
        "digits",
        "--method",
        "standard",
        "--eps",
        "0.1",
        "--batch-size",
        "1",
        "--epochs",
        "1",
    ]
    argv += ["--set", "train_n=8", "--set", "validation.n=2", "--set", "validation.fraction=0.25", "--out", "one"]
    ran = cli(*argv, "--arch", "resnet18", "--set", "model.width=2")
    assert ran.code == 2 and "resnet18 cannot be trained on one image at a time: set batch_size" in ran.err
    assert "Traceback" not in ran.err and cli.files() == set()
    assert cli(*argv, "--arch", "mlp").code == 0


def test_crops_of_more_than_the_image(cli: Any) -> None:
    ran = cli("train", "--set", "augment.crop=1000")
    assert ran.code == 2 and ran.err == "error: augment.crop 1000 is more than the side of the digits images\n"
    assert cli.files() == set()
