"""`make NAME-leaderboard`: methods under one protocol, by default the eleven that tell most.

    python tests/effects/board.py [--jobs 2] BOARD [METHOD ...]

A method's rate and main weight are chosen once, on 10,000 images of Fashion-MNIST, by a margin attack on held-out ones.
It is then trained on all images of the board's data set but 2,000, which choose the epoch, with each seed, and measured
by AutoAttack on the first 1,000 test images. What leaderboards/ has is not done again, and what was begun goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from evidence import BOARDS as LEADERBOARD
from evidence import Evaluation, Runs, Tuning
from run import found, measured
from workers import Workers, tune

ARCH = "small_cnn_16_32_100"
FOLDER = Path("boards")  # of the runs
# Of all boards. Without clipping, PGD-AT on MNIST at 0.3 fell to chance at the rate that Fashion-MNIST chose.
COMMON = ("batch_size=128", "optim.clip=1", "validation.held_out=2000", "validation.n=2000")
SEEDS = (1, 2, 3)  # seed 0 chose the settings
RATES = ("0.1", "0.2", "0.4")
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
    "free-at": DECAYS,  # fewer than m = 8 updates in a row would be another cost
    "center-loss": ("method.lam", "0.1", "0.3", "1"),
    "multi-task": ("method.weight", "0.3", "1", "3"),
    "compactness-trades": ("method.lc", "0.3", "1", "3"),
    "consistency-trades": ("method.lam", "0.5", "1", "2"),
    "consistency-mart": ("method.lam", "0.5", "1", "2"),
}
FIRST = tuple(WEIGHTS)[:11]
UNATTACKED = ("standard", "center-loss", "multi-task")  # almost nothing of these stands at the eps of a board
SINGLE_STEP = ("n-fgsm", "fast-at", "free-at")  # whether these learn at all depends on the eps
# learned-optimizer is meta-trained on a small net and digits, and moves from there to every board, as its paper says,
# for about as many updates as in the meta-training. It has no rate, and nothing of it is chosen.
SMALL = ("model.width=64", "model.depth=1")
META = Runs("board learned-optimizer meta", "learned-optimizer", SMALL, epochs=22, folders_in=FOLDER)
PLAIN = ("augment.policy=none", "augment.cutout=0")


@dataclass(frozen=True)
class Board:
    """Data, net and schedule of a board, in the leaderboard `folder`; `grid` are the eps of its table.

    `common`: fields of every recipe. `own`: fields of some methods'. `tuned`: methods whose settings are chosen on this
    board's data and eps.
    """

    dataset: str
    eps: str
    grid: str
    arch: str = ARCH
    epochs: int = 10
    common: tuple[str, ...] = COMMON
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tuned: tuple[str, ...] = ()
    folder: Path = LEADERBOARD


BOARDS = {
    "mnist": Board("mnist", "0.3", "0,0.1,0.2,0.3", tuned=SINGLE_STEP),
    "fashion-mnist": Board("fashion-mnist", "0.1", "0,0.05,0.1,0.15"),
    # The schedule of the other two boards. One augmentation for all: else three methods alone would have AutoAugment.
    "cifar10-small": Board(
        "cifar10", "8/255", "0,2/255,4/255,8/255",
        common=(*COMMON, "label_smoothing=0", "average.name=none", "inner.warmup=0.3"),
        own={"act": ("method.b_warmup=0.5",), **{name: PLAIN for name in WEIGHTS if name.startswith("consistency")}},
        folder=LEADERBOARD / "small",
    ),
    "cifar10": Board("cifar10", "8/255", "0,2/255,4/255,8/255,12/255", "resnet18", 30),  # for a GPU
}  # fmt: skip
METHODS = (*WEIGHTS, "learned-optimizer")


def tuning(method: str, on: str = "fashion-mnist") -> Tuning:
    """The choice of a method's rate and main weight, with the data and the eps of the board `on`."""
    few: dict[str, Any] = {"dataset": on, "arch": ARCH, "eps": BOARDS[on].eps, "epochs": 10}
    base = Runs(f"board tuning {method}", method, common=(*COMMON, "train_n=10000"), **few)
    field, *values = WEIGHTS[method]
    select = "clean" if method in UNATTACKED else "margin"
    grid = (("optim.lr", RATES_OF.get(method, RATES)), (field, tuple(values)))
    return Tuning(f"board-{method}" if on == "fashion-mnist" else f"board-{on}-{method}", base, grid, select)


def tunings() -> list[Tuning]:
    """Every choice that a board may ask for."""
    own = [tuning(method, name) for name, board in BOARDS.items() for method in board.tuned]
    return [*map(tuning, WEIGHTS), *own]


def trainings(name: str, method: str) -> Runs:
    """The trainings of a method for the board `name`."""
    board = BOARDS[name]
    common = (*board.common, *board.own.get(method, ()))
    regime: dict[str, Any] = {"dataset": board.dataset, "arch": board.arch, "eps": board.eps}
    regime |= {"seeds": SEEDS, "folders_in": FOLDER}
    if method == "learned-optimizer":
        source = (f"method.source={META.folder(0)}", "batch_size=1024")
        return Runs(f"{method}-{name}", method, source, epochs=1, common=common, after=(META,), **regime)
    chosen = tuning(method, name) if method in board.tuned else tuning(method)
    return Runs(f"{method}-{name}", method, epochs=board.epochs, common=common, tuned=chosen, **regime)


def evaluation(name: str, method: str) -> Evaluation:
    """The rows of a method on the board `name`."""
    board = BOARDS[name]
    return Evaluation(trainings(name, method), board.grid, n=1000, leaderboard=board.folder)


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", choices=BOARDS)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"by default {', '.join(FIRST)}")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    given = parser.parse_args()
    os.chdir(Path(__file__).parents[2])
    if unknown := set(given.methods) - set(METHODS):
        parser.error(f"unknown method {', '.join(sorted(unknown))}: choose from {', '.join(METHODS)}")
    records = measured()
    methods = tuple(dict.fromkeys(given.methods)) or FIRST
    order = ((evaluation(given.board, method), seed) for seed in SEEDS for method in methods)
    todo = [(row, seed) for row, seed in order if not found(records, row, seed, {})]
    if not todo:
        print(f"{given.board}: nothing was run, all seeds are measured of {', '.join(methods)}")
        return 0
    at_work = Workers(given.jobs)
    at_work.each(partial(measure, at_work, row, seed) for row, seed in todo)
    return at_work.code


def measure(at_work: Workers, row: Evaluation, seed: int) -> None:
    """Choose the settings if nobody has, train, evaluate."""
    chosen = row.runs.tuned
    for meta in row.runs.after:
        with at_work.alone(meta.label):
            at_work.run(meta.command(0))
    if chosen is not None:
        with at_work.alone(chosen.name):
            if not chosen.done:
                tune(at_work, chosen)
            if not chosen.done:
                return
    if at_work.run(row.runs.command(seed)):
        at_work.run(row.command(seed))


if __name__ == "__main__":
    sys.exit(main())
