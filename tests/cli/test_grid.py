"""`advbench train --grid`: what is trained, scored, kept, chosen and refused."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from advbench.checkpoint import load_model, read_card
from advbench.data import load
from advbench.defaults import tuning
from advbench.errors import Interrupted
from advbench.recipe import Recipe

PROBLEM = shlex.split(
    "train --dataset digits --arch linear --eps 0.05 --epochs 2 --batch-size 32 --set train_n=256 "
    "--set validation.held_out=300 --set inner.steps=2 --set inner.warmup=0"
)
LRS = ["--grid", "optim.lr=0.001,0.5"]
GRID = [*PROBLEM, "--method", "pgd-at", *LRS, "--out", "g"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def held_out() -> torch.Tensor:
    """The rows of the training split that PROBLEM holds out, found from its recipe."""
    from advbench.trainer.prepare import split

    recipe = Recipe.load(Path("g/pgd-at-optim.lr-0.5-s0/recipe.toml"))
    train, held, _ = split(recipe)
    assert held is not None and len(held) == 300 and train.indices.tolist() == list(range(256))
    return held.indices


def withstands(file: Path, rows: torch.Tensor, eps: float) -> tuple[int, int]:
    """How many images a linear net classifies correctly, and at how many no point of ball and box is misclassified."""
    net, (x, y) = load_model(str(file)).net, load("digits", "train").batch(rows)
    with torch.no_grad():
        bias = net(torch.zeros_like(x[:1]))[0]
        w = torch.stack([net(one.view(1, *x.shape[1:]))[0] - bias for one in torch.eye(64)], 1).double()  # (10, 64)
        right = net(x).argmax(1) == y
    flat, d = x.flatten(1).double(), w[y][:, None] - w[None]  # d (n, 10, 64): of the label's logit less each other
    low, high = (flat - eps).clamp_min(0)[:, None], (flat + eps).clamp_max(1)[:, None]
    least = torch.where(d > 0, d * low, d * high).sum(2) + (bias[y][:, None] - bias).double()
    least[torch.arange(len(y)), y] = torch.inf
    return int(right.sum()), int((least.amin(1) > 0).sum())


def test_every_setting_is_trained_and_scored_and_the_best_is_chosen(cli: Any) -> None:
    ran = cli(*GRID, "--seed", "0,1")
    assert ran.code == 0, ran.err
    names = {f"pgd-at-optim.lr-{lr}-s{seed}" for lr in ("0.001", "0.5") for seed in (0, 1)}
    assert {path.name for path in Path("g").iterdir() if path.is_dir()} == names
    rows = table(Path("g/grid.csv"))
    assert {(row["folder"], row["weights"]) for row in rows} == {(name, w) for name in names for w in ("best", "last")}
    for row in rows:
        run = Path("g") / row["folder"]
        file = run / {"best": "model.safetensors", "last": "last.safetensors"}[row["weights"]]
        clean, robust = withstands(file, held_out(), 0.05)
        assert (int(row["n"]), int(row["clean_k"])) == (300, clean)
        assert 0 <= int(row["robust_k"]) - robust <= 3  # an attack is an upper bound, and this one a tight one
        assert float(row["robust"]) == round(int(row["robust_k"]) / 300, 4)
        card = read_card(run)
        assert (row["recipe_sha256"], row["weights_sha256"]) == (card.recipe_sha256, card.files[file.name])
        assert (int(row["updates"]), int(row["epochs"]), int(row["train_images"])) == (2 * 8, 2, 256)
        assert float(row["passes"]) == (2 + 1) * 2  # forward and backward, in two steps of the attack and the update
    assert tuning.chosen(Path("g/grid.csv")) == {"pgd-at": {"optim.lr": "0.5"}}
    assert "best epoch: --method pgd-at --set optim.lr=0.5\n" in ran.out
    assert "last epoch: --method pgd-at --set optim.lr=0.5 --set validation.select=last\n" in ran.out
    assert "on 300 images a score of 50 % is known to +-5.6 points" in ran.err
    assert all(len(line) <= 80 for line in ran.out[ran.out.index("clean / margin") :].splitlines())


def test_what_is_scored_is_not_scored_again(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*GRID).code == 0
    kept = Path("g/grid.csv").read_text()
    Path("g/grid.csv").unlink()
    assert cli(*GRID, "--resume").code == 0
    assert Path("g/grid.csv").read_text() == kept
    monkeypatch.setattr(tuning, "_attacked", lambda *_: pytest.fail("attacked again"))
    again = cli(*GRID, "--resume")
    assert again.code == 0 and again.err.count("is finished: nothing to do") == 2
    assert Path("g/grid.csv").read_text() == kept
    assert cli(*GRID).is_one_clear_line  # the runs exist


def test_an_interrupted_grid_goes_on(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    attacked, calls = tuning._attacked, []

    def stopped(*given: Any) -> tuple[int, int]:
        calls.append(given)
        if len(calls) == 2:
            raise Interrupted("stopped")
        return attacked(*given)

    monkeypatch.setattr(tuning, "_attacked", stopped)
    ran = cli(*GRID)
    assert ran.code == 3 and ran.err.rstrip().endswith("--out g --resume")
    assert {row["folder"] for row in table(Path("g/grid.csv"))} == {"pgd-at-optim.lr-0.001-s0"}
    first = Path("g/grid.csv").read_text()
    ran = cli(*GRID, "--resume")
    assert ran.code == 0 and Path("g/grid.csv").read_text().startswith(first)
    assert len(table(Path("g/grid.csv"))) == 4


def test_a_run_that_diverges_was_tried_and_is_never_chosen(cli: Any) -> None:
    argv = [*PROBLEM, "--arch", "mlp", "--method", "pgd-at", "--grid", "optim.lr=1e30,0.5", "--out", "g"]
    ran = cli(*argv)
    assert ran.code == 0 and "warning: g/pgd-at-optim.lr-1e+30-s0: the loss is not finite" in ran.err
    rows = table(Path("g/grid.csv"))
    found = [(row["set optim.lr"], row["robust_k"] == "") for row in rows]
    assert found == [("1e+30", True)] * 2 + [("0.5", False)] * 2
    assert tuning.chosen(Path("g/grid.csv")) == {"pgd-at": {"optim.lr": "0.5"}}
    again = cli(*argv, "--resume")
    assert again.code == 0 and "diverged before" in again.err and table(Path("g/grid.csv")) == rows


def test_a_field_of_one_method_is_varied_for_that_one(cli: Any) -> None:
    ran = cli(
        *PROBLEM, "--method", "trades,pgd-at", "--grid", "method.beta=1,6", *LRS, "--out", "g", "--dry-run", "--json"
    )
    found = [json.loads(line)["recipe"] for line in ran.out.splitlines()]
    settings = [(one["method"]["name"], one["method"].get("beta"), one["optim"]["lr"]) for one in found]
    trades = [("trades", beta, lr) for beta in (1.0, 6.0) for lr in (0.001, 0.5)]
    assert settings == [*trades, ("pgd-at", None, 0.001), ("pgd-at", None, 0.5)]
    assert not Path("g").exists()


def test_a_dry_run_says_what_would_be_scored(cli: Any) -> None:
    ran = cli(*GRID, "--dry-run")
    first, *_ = ran.out.splitlines()
    assert first == (
        "# 2 runs, each scored by apgd-t steps=20 n_targets=3 targets=malt on 300 held-out images; what was tried goes "
        "into g/grid.csv"
    )
    assert "lr = 0.001" in ran.out and "lr = 0.5" in ran.out and not Path("g").exists()


def test_the_last_epoch_alone_where_it_is_deployed(cli: Any) -> None:
    ran = cli(*GRID, "--set", "validation.select=last", "--json")
    assert ran.code == 0
    *runs, last = [json.loads(line) for line in ran.out.splitlines()]
    assert [Path(run["run"]).name for run in runs] == ["pgd-at-optim.lr-0.001-s0", "pgd-at-optim.lr-0.5-s0"]
    assert last["chosen"] == {weights: {"pgd-at": {"optim.lr": "0.5"}} for weights in ("best", "last")}
    assert len(last["trials"]) == 4 and (last["grid"], last["select"]) == ("g/grid.csv", "margin")
    shown = cli(*GRID, "--set", "validation.select=last", "--resume").out
    assert "last epoch: --method pgd-at --set optim.lr=0.5\n" in shown and "best epoch" not in shown


def test_another_grid_is_added_and_another_problem_refused(cli: Any) -> None:
    assert cli(*GRID).code == 0
    more = [*PROBLEM, "--method", "trades", "--grid", "method.beta=1,2,6", "--out", "g"]
    ran = cli(*more)
    assert ran.code == 0 and len(table(Path("g/grid.csv"))) == 2 * (2 + 3)
    assert set(tuning.chosen(Path("g/grid.csv"))) == {"pgd-at", "trades"}
    assert "not as many settings of each method were tried (pgd-at 2, trades 3)" in ran.err
    for other in (["--eps", "0.06"], ["--set", "train_n=200"], ["--set", "validation.seed=1"]):
        ran = cli(*more, *other, "--dry-run")
        assert ran.is_one_clear_line and "another problem" in ran.err and "name another --out" in ran.err
    wider = [*PROBLEM, "--method", "pgd-at", "--grid", "optim.lr=0.7,0.9", "--out", "g", "--dry-run"]
    ran = cli(*wider, "--set", "optim.weight_decay=0.01")
    assert ran.is_one_clear_line and "optim.weight_decay is 0.0005 in g/pgd-at-optim.lr-0.001-s0 and 0.01" in ran.err
    assert cli(*wider, "--grid", "optim.weight_decay=0.01,0.02").code == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--grid optim.lr", "is not FIELD=VALUE,VALUE"),
        ("--grid optim.lr=", "is not FIELD=VALUE,VALUE"),
        ("--grid optim.lr=0.1,", "is not FIELD=VALUE,VALUE"),
        ("--grid =1,2", "is not FIELD=VALUE,VALUE"),
        ("--grid optim.lr=0.1", "one setting of a method"),
        ("--grid optim.lr=0.1,0.10", "one setting of a method"),
        ("--grid optim.lr=0.1,fast", "recipe field optim.lr is 'fast': it must be a number"),
        ("--grid optim.rate=0.1,0.2", "unknown recipe field 'optim.rate'"),
        ("--grid method.beta=1,2", "unknown field of the method 'beta'"),
        ("--grid threat.eps=0.1,0.2", "vary settings such as"),
        ("--grid seed=1,2", "vary settings such as"),
        ("--grid optim.lr=1,2 --eps 0.1,0.2", "for one eps"),
        ("--grid optim.lr=1,2 --on ray", "leave out --on"),
        ("--grid optim.lr=1,2 --select robust", "choose from clean, margin"),
        ("--grid optim.lr=1,2 --set validation.held_out=none", "validation.held_out"),
        ("--select margin", "name some with --grid"),
    ],
)
def test_what_is_refused(cli: Any, argv: str, words: str) -> None:
    ran = cli(*PROBLEM, "--method", "pgd-at", "--out", "g", *shlex.split(argv))
    assert ran.is_one_clear_line, ran.err
    assert words in ran.err
    assert not Path("g").exists()


def test_without_a_folder_or_held_out_images(cli: Any) -> None:
    ran = cli("train", "--dataset", "digits", *LRS)
    assert ran.is_one_clear_line and "name one with --out" in ran.err
    ran = cli("train", "--dataset", "digits", *LRS, "--out", "g", "--set", "validation.fraction=0")
    assert ran.is_one_clear_line and "set validation.held_out=N" in ran.err
