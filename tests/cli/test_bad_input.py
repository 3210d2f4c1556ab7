"""Wrong input: exit code 2, one line that names the valid choices, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
        (["train", "--norm", "linff"], "linf"),
        (["train", "--device", "gpu"], "choose from auto, cpu, cuda, cuda:N"),
        (["train", "--device", "cuda:99"], "choose from auto, cpu"),
        (["train", "--seed", "one"], "whole numbers"),
        (["train", "--seed", "-1"], "whole numbers"),
        (["train", "--epochs", "0"], "'--epochs'"),
        (["train", "--lr", "fast"], "'--lr'"),
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
        (["evaluate", "-n", "many"], "'-n'"),
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
        (["evaluate", "--engine", "theirs"], "own, reference"),
        (["evaluate", "--curve", "slow"], "exact, fast"),
        (["evaluate", "--precision", "fp16"], "auto, bf16, fp32"),
        (["evaluate", "--dataset", "npz:colour.npz"], "channels"),
        (["evaluate", "--dataset", "npz:classes.npz"], "3"),
        (["evaluate", "--norm", "l2"], "--eps"),
        (["evaluate", "--model", "empty"], "not a run folder"),
        (["evaluate", "--model", "weights.pt", "--dataset", "digits"], "--trust-pickle"),
        (["evaluate", "--model", "runs/a", "--arch", "resnet18"], "leave out --arch"),
        (["attack", "--out", "empty"], "--force"),
        (["train", "--out", "empty/notes"], "is a file"),
        (["train", "--out", "notes/inside"], "is a file"),
        (["train", "--out", "runs"], "something other than a run"),
        (["train", "--out", "runs/a"], "--resume"),
        (["train", "--out", "runs/a", "--resume"], "another recipe"),
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
    np.savez(tmp_path / "classes.npz", **{f"{k}_{s}": v for k, v in arrays.items() for s in ("train", "test")})
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
