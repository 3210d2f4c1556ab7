"""What a method cannot do is refused in one line before training. Flags of a training appear wherever its run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advbench.checkpoint.card import read_card, write_card
from advbench.record import Flag, load_record

SHORT = ["--dataset", "digits", "--arch", "mlp", "--set", "train_n=256", "--set", "validation.n=32"]

PLAIN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.flat, self.linear = nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(self.flat(x)).tanh()
"""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "free-at", "--norm", "l1"], "free-at cannot train for norm l1: choose from linf, l2"),
        (["--method", "n-fgsm", "--norm", "fourier-linf"], "choose from linf"),
        (["--method", "feature-prioritization"], "mlp has no feature maps: choose from"),
        (["--method", "multi-task", "--set", "method.tasks=colour"], "unknown task"),
        (["--method", "multi-task", "--set", "method.tasks="], "name each of rotation"),
        (["--method", "great", "--set", "model.activation=relu"], "set model.activation to one of softplus, silu"),
        (["--method", "great", "--set", "method.soft=1"], "method.soft is for method.form=distillation"),
        (["--method", "great", "--set", "method.per=sample"], "set method.relative=true too"),
        (["--method", "consistency", "--set", "augment.crop=0"], "but the recipe has none: set augment.crop"),
        (["--method", "learned-optimizer", "--set", "awp.gamma=0.01"], "awp.gamma must be 0"),
        (
            ["--method", "act", "--set", "method.natural_arch=lenet"],
            "unknown architecture in method.natural_arch 'lenet': did you mean lenet5",
        ),
        (["--method", "act", "--set", "method.natural_arch=quantize"], "unknown architecture in method.natural_arch"),
        (
            ["--method", "pgd-at,free-at", "--norm", "l1"],
            "free-at cannot train for norm l1",
        ),  # refused before pgd-at trains
    ],
)
def test_what_a_method_cannot_do(cli: Any, argv: list[str], message: str) -> None:
    ran = cli("train", *SHORT, *argv)
    assert ran.code == 2 and ran.err.startswith("error: ") and ran.err.count("\n") == 1, ran.err
    assert message in ran.err, ran.err
    assert not [file for file in cli.files() if file.endswith((".safetensors", "metrics.jsonl"))]


def test_superclasses_that_a_dataset_does_not_have(cli: Any) -> None:
    ran = cli("train", "--method", "multi-task", "--dataset", "svhn", "--set", "method.tasks=macro")
    assert ran.is_one_clear_line and "no superclasses are known for svhn" in ran.err and "method.macro" in ran.err
    assert cli.files() == set()


def test_a_model_without_features(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (cli.folder / "plain_net_of_the_tests.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(str(cli.folder))
    ran = cli("train", "--method", "center-loss", "--dataset", "digits", "--arch", "plain_net_of_the_tests:Net")
    assert ran.code == 2 and "needs a net that ends in a linear layer, or model.features=LAYER" in ran.err
    assert not [file for file in cli.files() if file.endswith(".safetensors")]


def test_a_loss_that_is_not_finite(cli: Any) -> None:
    wild = ["--epochs", "40", "--set", "optim.lr=1e18", "--set", "schedule.name=piecewise"]
    ran = cli("train", "--method", "standard", *SHORT, *wild, "--set", "schedule.warmup=0.5", "--out", "runs/wild")
    assert ran.code == 2
    last = ran.err.splitlines()[-1]
    assert last.startswith("error: the loss is not finite from epoch") and "batch" in last and "optim.lr" in last


def test_catastrophic_overfitting_is_shown_wherever_the_run_appears(cli: Any, run_folder: Path) -> None:
    flag = Flag(name="catastrophic-overfitting", severity="suspect", detail="epoch 9: PGD 0.0%, FGSM 88.0%")
    write_card(run_folder, read_card(run_folder).model_copy(update={"flags": (flag,)}))
    again = cli("train", "--config", run_folder / "recipe.toml", "--out", run_folder, "--resume")
    assert again.code == 0 and "catastrophic-overfitting" in again.err
    ran = cli("evaluate", "--model", run_folder, "--attack", "fgsm", "--eps", "0,0.1", "-n", 20, "--leaderboard", "LB")
    assert ran.code == 0, ran.err
    assert "suspect: catastrophic-overfitting: epoch 9: PGD 0.0%, FGSM 88.0%" in ran.out
    (file,) = Path("LB").rglob("records/*/*/*.json")
    assert "catastrophic-overfitting" in {one.name for one in load_record(file)[0].flags}
    table = Path("LB/digits-linf.md").read_text()
    assert "catastrophic-overfitting (suspect)" in table.partition("Below the line")[2]
    assert "catastrophic-overfitting:suspect" in Path("LB/digits-linf.csv").read_text()
    assert "catastrophic-overfitting" in cli("attack", "--model", run_folder, "--attack", "fgsm", "-n", 8).out
