"""`make NAME-leaderboard`: every method under one protocol, the most informative first.

    python tests/effects/board.py [--jobs 2] BOARD

A method's rate and main weight are chosen once, on 10,000 images of Fashion-MNIST, by a margin attack on held-out ones.
It is then trained on all images of the board's data set, with each seed, and measured by AutoAttack on the first 1,000
test images. What leaderboards/ has is not done again, and what was begun goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evidence import Evaluation, Runs, Tuning
from run import found, measured
from workers import Workers, tune

ARCH = "small_cnn_16_32_100"
FOLDER = Path("boards")  # of the runs
SEEDS = (0, 1, 2)
RATES = ("0.02", "0.05", "0.1")
RATES_OF = {"great": ("0.001", "0.002", "0.005"), "free-at": ("0.005", "0.01", "0.02")}  # Adam; m updates in a row
DECAYS = ("optim.weight_decay", "0.0002", "0.0005", "0.002")
WEIGHTS = {  # of each method the field that makes it this method rather than another; where there is none, the decay
    "pgd-at": DECAYS,
    "trades": ("method.beta", "3", "6", "12"),
    "standard": DECAYS,
    "act": ("method.b", "0.8", "0.9", "0.95"),
    "great": ("method.alpha", "0.3", "1", "3"),
    "mart": ("method.beta", "3", "5", "8"),
    "compactness": ("method.lc", "0.3", "1", "3"),
    "consistency": ("method.lam", "0.5", "1", "2"),
    "feature-prioritization": ("method.lam", "0.003", "0.01", "0.1"),
    "n-fgsm": ("method.k", "0.5", "1", "2"),
    "fast-at": ("inner.rel_step", "1", "1.25", "1.5"),
    "center-loss-at": ("method.lam", "0.03", "0.1", "0.3"),
    "multi-task-at": ("method.weight", "0.3", "1", "3"),
    "free-at": ("method.m", "2", "4", "8"),
    "center-loss": ("method.lam", "0.1", "0.3", "1"),
    "multi-task": ("method.weight", "0.3", "1", "3"),
    "compactness-trades": ("method.lc", "0.3", "1", "3"),
    "consistency-trades": ("method.lam", "0.5", "1", "2"),
    "consistency-mart": ("method.lam", "0.5", "1", "2"),
}
UNATTACKED = ("standard", "center-loss", "multi-task")  # almost nothing of these stands at the eps of a board
# learned-optimizer is meta-trained on a small net and digits, and moves from there to every board, as its paper says.
SMALL = ("model.width=64", "model.depth=1")
META = Runs("board learned-optimizer meta", "learned-optimizer", SMALL, epochs=22, folders_in=FOLDER)


@dataclass(frozen=True)
class Board:
    """Data, net and schedule of a board; `grid` are the eps of its table, `common` fields of every recipe."""

    dataset: str
    eps: str
    grid: str
    arch: str = ARCH
    epochs: int = 10
    common: tuple[str, ...] = ("batch_size=128", "validation.held_out=2000")


BOARDS = {
    "mnist": Board("mnist", "0.3", "0,0.1,0.2,0.3"),
    "fashion-mnist": Board("fashion-mnist", "0.1", "0,0.05,0.1,0.15"),
    "cifar10-small": Board("cifar10", "8/255", "0,2/255,4/255,8/255"),
    "cifar10": Board("cifar10", "8/255", "0,2/255,4/255,8/255,12/255", "resnet18", 30),  # for a GPU
}
METHODS = (*WEIGHTS, "learned-optimizer")


def tuning(method: str) -> Tuning:
    """The choice of a method's rate and main weight."""
    few: dict[str, Any] = {"dataset": "fashion-mnist", "arch": ARCH, "eps": "0.1", "epochs": 10}
    base = Runs(
        f"board tuning {method}", method, common=("batch_size=128", "train_n=10000", "validation.held_out=2000"), **few
    )
    field, *values = WEIGHTS[method]
    select = "clean" if method in UNATTACKED else "margin"
    return Tuning(f"board-{method}", base, (("optim.lr", RATES_OF.get(method, RATES)), (field, tuple(values))), select)


def trainings(name: str, method: str) -> Runs:
    """The trainings of a method for the board `name`."""
    board = BOARDS[name]
    regime: dict[str, Any] = {"dataset": board.dataset, "arch": board.arch, "eps": board.eps, "epochs": board.epochs}
    regime |= {"common": board.common, "seeds": SEEDS, "folders_in": FOLDER}
    if method == "learned-optimizer":
        return Runs(f"{method}-{name}", method, (f"method.source={META.folder(0)}",), **regime)
    return Runs(f"{method}-{name}", method, tuned=tuning(method), **regime)


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", choices=BOARDS)
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    given = parser.parse_args()
    os.chdir(Path(__file__).parents[2])
    records = measured()
    grid = BOARDS[given.board].grid
    rows = [Evaluation(trainings(given.board, name), grid, n=1000, board=True) for name in METHODS]
    todo = [(row, seed) for seed in SEEDS for row in rows if not found(records, row, seed, {})]
    if not todo:
        print(f"{given.board}: nothing was run, all of it is measured")
        return 0
    at_work = Workers(given.jobs)
    if any(row.runs.method == "learned-optimizer" for row, _ in todo):
        at_work.each([partial(at_work.run, META.command(0))])
    at_work.each(partial(measure, at_work, row, seed) for row, seed in todo)
    return at_work.code


def measure(at_work: Workers, row: Evaluation, seed: int) -> None:
    """Choose the settings if nobody has, train, evaluate."""
    chosen = row.runs.tuned
    if chosen is not None:
        with at_work.alone(chosen.name):
            if not chosen.file.is_file():
                tune(at_work, chosen)
            if not chosen.file.is_file():
                return
    if at_work.run(row.runs.command(seed)):
        at_work.run(row.command(seed))


if __name__ == "__main__":
    sys.exit(main())
