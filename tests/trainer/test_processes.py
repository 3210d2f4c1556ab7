"""Two processes that share every batch train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from advbench import ranks
from advbench.checkpoint import read_card
from advbench.errors import UserError
from advbench.recipe import Recipe
from advbench.trainer import train
from advbench.trainer.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("started_by_fork")]

# Halves of a batch are other kernels than the whole: sums differ in their last bits. That may turn the sign of a
# gradient near 0, which moves a pixel by a whole step of the attack, and Adam makes whole steps of any gradient. So
# losses agree to a share of themselves, and weights, all together, to a share of the way that they have gone.
LOSS, WAY = 5e-4, 0.01  # a pixel of an image is worth 1e-4 of a step here; a half that is left out, a half of it

CASES: dict[str, tuple[str, list[str]]] = {
    "pgd-at": ("pgd-at", ["awp.gamma=0.01", "average.name=ema", "optim.clip=0.5"]),
    "trades": ("trades", ["optim.name=adam", "optim.lr=0.001", "augment.crop=1"]),
    "act": ("act", []),
    "free-at": ("free-at", ["method.m=2"]),
    "center": ("center-loss-at", ["method.reduction=sum", "method.lam=0.01"]),
    "consistency": ("consistency", []),
    "great": ("great", ["model.activation=softplus"]),
    "multi-task": ("multi-task", []),
    "compactness": ("compactness", ["method.gc=0"]),
}

# Signs of small gradients turn at the last bit of a running statistic: smooth nets and small steps turn few of them.
CALM = ["model.width=4", "model.activation=softplus", "optim.lr=0.001"]
NORMED: dict[str, list[str]] = {
    "normed": ["average.name=ema", "awp.gamma=0.01"],
    "normed-attack": ["inner.bn_mode=train", "average.name=swa", "average.start=0"],
}

JOB = """
import sys, tomllib, torch
from pathlib import Path
from advbench import ranks
from advbench.errors import Interrupted, UserError
from advbench.recipe import Recipe
from advbench.trainer import Watch, train
torch.set_num_threads(1)
folder = Path(sys.argv[1])

class StopAfter(Watch):
    def __init__(self, steps): self.left = steps
    def stop(self):
        self.left -= 1
        return self.left == 0

with ranks.joined():
    for file in sorted((folder / "recipes").glob("*.toml")):
        recipe, out = Recipe.load(file), folder / "two" / file.stem
        if file.stem == "refused":
            try:
                train(recipe, out, device="cpu")
            except UserError as error:
                Path(folder / f"refused-{ranks.rank()}").write_text(str(error))
        elif file.stem == "pieces":
            for steps in (3, 4, 100):
                try:
                    # A signal reaches one process: all must stop at the same step.
                    train(recipe, out, device="cpu", resume=True, watch=StopAfter(steps if ranks.rank() else 1000))
                except Interrupted:
                    (folder / f"stopped-{steps}-{ranks.rank()}").touch()
        else:
            train(recipe, out, device="cpu")
"""


def together(job: str, *argv: object, count: int = 2) -> None:
    """Run `job` in `count` processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", job, *map(str, argv)],
            env={**shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        for process in started:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()
            process.communicate()


def by_halves(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What `bn = "local"` says of two processes, in one: each half of the batch is normalised by its own mean and
    variance, and each running statistic becomes the mean of what it would become by either half."""
    if not self.training:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
    assert self.running_mean is not None
    assert self.running_var is not None
    assert self.num_batches_tracked is not None
    running = torch.stack([self.running_mean, self.running_var])
    kept = [running.clone(), running.clone()]
    halves = [
        functional.batch_norm(half, own[0], own[1], self.weight, self.bias, True, self.momentum or 0.0, self.eps)
        for half, own in zip(x.chunk(2), kept, strict=True)
    ]
    if self.track_running_stats:
        self.running_mean.copy_((kept[0][0] + kept[1][0]) / 2)
        self.running_var.copy_((kept[0][1] + kept[1][1]) / 2)
        self.num_batches_tracked.add_(1)
    return torch.cat(halves)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one/ and two/: the runs of all cases by one process and by two; pieces/ was interrupted, whole was not.
    halves/: those with BatchNorm by one process that treats each half of a batch as a process would."""
    folder = tmp_path_factory.mktemp("processes")
    short = ["epochs=2", "batch_size=16", "train_n=80", "validation.fraction=0.2", "inner.steps=2"]
    short += ["validation.steps=2", "optim.lr=0.05", "inner.warmup=0", "schedule.name=constant", "model.width=32"]
    noisy = ["model.dropout=0.3", "method.m=2"]
    recipes: Mapping[str, Recipe] = {
        **{
            name: Recipe.resolve(method=method, arch="mlp", eps="0.1", sets=[*short, *own])
            for name, (method, own) in CASES.items()
        },
        **{
            name: Recipe.resolve(method="pgd-at", arch="resnet18", eps="0.1", sets=[*short[:-1], *CALM, *own])
            for name, own in NORMED.items()
        },
        **{
            name: Recipe.resolve(method="free-at", arch="small_cnn", eps="0.1", sets=[*short[:-1], *noisy])
            for name in ("pieces", "whole")
        },
        "refused": Recipe.resolve(method="pgd-at", arch="mlp", eps="0.1", sets=[*short, "batch_size=15"]),
    }  # fmt: skip
    (folder / "recipes").mkdir()
    for name, recipe in recipes.items():
        (folder / "recipes" / f"{name}.toml").write_text(recipe.to_toml())
        if name in CASES or name in NORMED:
            train(recipe, folder / "one" / name, device="cpu")
        if name in NORMED:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(nn.BatchNorm2d, "forward", by_halves)
                train(recipe, folder / "halves" / name, device="cpu")
    together(JOB, folder)
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def agree(run: Path, other: Path) -> None:
    """Losses, accuracies and weights of two runs of one recipe."""
    one, two = metrics(run), metrics(other)
    assert len(one) == len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=LOSS)
        assert theirs["terms"] == pytest.approx(mine["terms"], rel=LOSS, abs=LOSS)
        assert theirs["clean"] == pytest.approx(mine["clean"], abs=1.01 / 64)  # one of 64 images, at a boundary
    a, b = (load_file(folder / "last.safetensors") for folder in (run, other))
    start = Session(Recipe.load(run / "recipe.toml"), torch.device("cpu")).nets.f.state_dict()
    assert a.keys() == b.keys() == start.keys()
    statistics = [key for key in a if key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")]
    for keys in ([key for key in a if key not in statistics], *([key] for key in statistics)):
        mine, theirs, first = (torch.cat([w[key].double().flatten() for key in keys]) for w in (a, b, start))
        assert (theirs - mine).norm() <= WAY * (mine - first).norm()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_curve_is_that_of_one_process(runs: Path, name: str) -> None:
    agree(runs / "one" / name, runs / "two" / name)
    mine, theirs = read_card(runs / "one" / name).cost, read_card(runs / "two" / name).cost
    assert [theirs[key] for key in ("forwards", "backwards")] == [mine[key] for key in ("forwards", "backwards")]
    assert (mine["processes"], theirs["processes"]) == (1, 2)


@pytest.mark.parametrize("name", NORMED)
def test_batchnorm_is_local_and_its_running_statistics_are_averaged(runs: Path, name: str) -> None:
    agree(runs / "halves" / name, runs / "two" / name)
    for mine, whole in zip(metrics(runs / "two" / name), metrics(runs / "one" / name), strict=True):
        assert mine["loss"] != pytest.approx(whole["loss"], rel=2 * LOSS)  # that of the whole batch


def test_batchnorm_by_the_whole_batch_needs_cuda(
    monkeypatch: pytest.MonkeyPatch, recipe: Callable[..., Recipe]
) -> None:
    made = recipe("pgd-at", "bn=sync")
    Session(made, torch.device("cpu"))  # one process has nothing to synchronise
    monkeypatch.setattr(ranks, "_here", ranks._Place(0, 2))
    with pytest.raises(UserError, match="bn=local"):
        Session(made, torch.device("cpu"))


def test_stopped_and_resumed_to_the_bit(runs: Path) -> None:
    stopped = {file.name for file in runs.glob("stopped-*")}
    assert stopped == {"stopped-3-0", "stopped-3-1", "stopped-4-0", "stopped-4-1"}
    for name in ("model.safetensors", "last.safetensors"):
        assert (runs / "two" / "pieces" / name).read_bytes() == (runs / "two" / "whole" / name).read_bytes()
    assert [row["loss"] for row in metrics(runs / "two" / "pieces")] == [
        row["loss"] for row in metrics(runs / "two" / "whole")
    ]


def test_what_cannot_be_shared_is_refused_by_all(runs: Path) -> None:
    for number in range(2):
        assert "multiple of 2" in (runs / f"refused-{number}").read_text()


@pytest.mark.parametrize(("method", "reason"), [("compactness", "method.gc=0"), ("learned-optimizer", "one process")])
def test_methods_that_need_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, recipe: Callable[..., Recipe], tmp_path: Path, method: str, reason: str
) -> None:
    from advbench.methods.base import make

    made = recipe(method)
    make(made).check(made, 10)
    monkeypatch.setattr(ranks, "_here", ranks._Place(0, 2))
    with pytest.raises(UserError, match=reason):
        make(made).check(made, 10)


def test_another_number_of_processes_cannot_resume(runs: Path, recipe: Callable[..., Recipe]) -> None:
    run = runs / "two" / "whole"
    card = read_card(run).model_copy(update={"finished": False})
    (run / "run.json").write_text(card.model_dump_json(by_alias=True))
    with pytest.raises(UserError, match="begun by 2 processes"):
        train(Recipe.load(run / "recipe.toml"), run, device="cpu", resume=True)
