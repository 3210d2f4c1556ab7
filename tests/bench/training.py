"""Our training loop beside the plain one that papers' code uses, and beside those of other libraries (see loops.py):
same net, weights, images, method, batch and steps.

    python tests/bench/training.py [--method pgd-at|trades] [--steps K] [--rounds R] [--batch-size B] [--threads T]
        [--precision fp32|bf16] [--set FIELD=VALUE] [--long] [--cuda] [--out FILE.md]

Rounds alternate, and the median of the ratios counts, so that other work on the machine slows all alike. Libraries that
are not installed are named and left out.
--long trains all for 1,500 steps, or as many as --steps and --rounds say, and scores them by PGD-50.
--cuda: ResNet-18, CIFAR-10, PGD-10, batch 512, and the share of the bf16 matrix rate that is reached.
--out puts the table into a Markdown file, in the place of that of the same method, net and dataset.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from copy import deepcopy
from datetime import date
from pathlib import Path
from statistics import median

import report
import torch
from cuda_bench import matrix_rate
from loops import Task, available, serve, timed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.environment import environment
from advbench.errors import UserError
from advbench.evaluator import Settings, evaluate
from advbench.evaluator.evaluate import bare
from advbench.recipe import Recipe
from advbench.trainer.prepare import network
from advbench.trainer.session import Session


class Ours:
    """The trainer's own session, epoch after epoch."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.order = session.order()

    def step(self) -> None:
        self.session.step(self.order)
        if self.session.position == self.session.steps:
            self.session.end_epoch()
            self.order = self.session.order()


class Other:
    """A loop of loops.py in its process, waiting between rounds."""

    def __init__(self, name: str, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=serve, args=(name, task, far))
        self.process.start()
        far.close()  # so that its death is heard
        self.passes: tuple[float, float] = self.pipe.recv()
        self.seconds: list[float] = []

    def measure(self, steps: int) -> None:
        self.pipe.send(steps)
        self.seconds.append(self.pipe.recv())

    def end(self) -> nn.Module:
        """Its net; the process is gone."""
        self.pipe.send(0)
        net = deepcopy(self.pipe.recv())
        self.pipe.send(0)
        self.process.join()
        return net  # type: ignore[no-any-return]


def task_of(session: Session, workers: int, threads: int) -> Task:
    """What `session` does, for the other loops. The net is a new one of the same seed: hooks cannot be sent."""
    recipe = session.recipe
    net = session.method.wrap(network(recipe, session.data, recipe.seed), recipe.seed)
    return Task(recipe, net, session.data.to("cpu"), str(session.device), workers, threads)


def operations(session: Session) -> float:
    """Multiplications and additions of products and convolutions in one step: a backward pass to the input has those
    of a forward pass, one to the weights too has them twice."""
    x, _ = session.data.batch(slice(0, session.batch_size))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        session.nets.f(x)
    session.counter.forwards = session.counter.backwards = 0
    Ours(session).step()
    passes = (session.counter.forwards + session.counter.backwards) / session.batch_size
    outer = 2 if session.recipe.method.name == "trades" else 1
    return float(counter.get_total_flops() * (passes + outer))


def accuracy(net: nn.Module, data: Dataset, eps: str) -> tuple[float, float]:
    """Percent right, clean and under PGD-50."""
    net = net.eval().to(memory_format=torch.contiguous_format)
    record = evaluate(bare(net, data), data, Settings(attack="pgd", attack_settings={"steps": 50}, eps=[eps])).record
    return 100 * record.clean, 100 * record.curve[0].accuracy


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="pgd-at", choices=("pgd-at", "trades"))
    parser.add_argument("--dataset", default=None, help="[mnist; CUDA cifar10]")
    parser.add_argument("--arch", default=None, help="[small_cnn; CUDA resnet18]")
    parser.add_argument("--steps", type=int, default=None, help="a round [10; CUDA 50]")
    parser.add_argument("--rounds", type=int, default=None, help="[5]")
    parser.add_argument("--batch-size", type=int, default=None, help="[128; CUDA 512]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of ours")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe")
    parser.add_argument("--long", action="store_true", help="1,500 steps of both, and their accuracies")
    parser.add_argument("--cuda", action="store_true", help="ResNet-18 on CIFAR-10, batch 512")
    parser.add_argument("-n", type=int, default=1000, help="test images to score")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.cuda and not torch.cuda.is_available():
        sys.exit("error: --cuda measures on an NVIDIA GPU, and there is no CUDA device here")
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if given.cuda else "cpu")
    batch = given.batch_size or (512 if given.cuda else 128)
    steps = given.steps or (300 if given.long else 50 if given.cuda else 10)
    rounds = given.rounds or 5
    dataset = given.dataset or ("cifar10" if given.cuda else "mnist")
    arch = given.arch or ("resnet18" if given.cuda else "small_cnn")
    recipe = Recipe.resolve(
        method=given.method, dataset=dataset, arch=arch, flags={"batch_size": batch}, sets=given.set
    )
    epoch = Session(recipe, torch.device("cpu")).steps
    epochs = max(1, round(rounds * steps / epoch))
    if given.long:  # to the end of the schedule, but for a few steps
        steps = epochs * epoch // rounds
    recipe = recipe.model_copy(update={"epochs": epochs, "precision": given.precision})
    timed(Ours(Session(recipe, device)).step, 2, device)
    flops = operations(Session(recipe, device))
    session = Session(recipe, device)
    ours = Ours(session)
    task = task_of(session, given.workers, given.threads)
    found, missing = available(given.method)
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    os.environ["TQDM_DISABLE"] = "1"  # art draws two bars a step
    others = {name: Other(name, task) for name in found}
    mine = []
    for _ in range(rounds):
        for other in others.values():
            other.measure(steps)
        mine.append(timed(ours.step, steps, device))
    nets = {"ours": session.nets.f, **{found[name]: other.end() for name, other in others.items()}}
    passes = session.counter.forwards / session.images, session.counter.backwards / session.images
    measured = {"ours": (mine, passes), **{found[name]: (one.seconds, one.passes) for name, one in others.items()}}
    rows = []
    for name, (seconds, (forwards, backwards)) in measured.items():
        ratios = [a / b for a, b in zip(seconds, mine, strict=True)]
        rows.append(
            {
                "loop": name,
                "images/s": f"{batch / median(seconds):,.0f}",
                "epoch, s": f"{epoch * median(seconds):,.1f}",
                "time / ours": f"{median(ratios):.2f}",
                "rounds": ", ".join(f"{ratio:.2f}" for ratio in ratios),
                "forwards": f"{forwards:.2f}",
                "backwards": f"{backwards:.2f}",
            }
        )
    scored = ""
    if given.long:
        test = load(dataset, "test")
        test = test.subset(range(min(given.n, len(test))))
        for cells, net in zip(rows, nets.values(), strict=True):
            clean, robust = accuracy(net, test, recipe.threat.eps)
            noise = 100 * (robust / 100 * (1 - robust / 100) / len(test)) ** 0.5
            cells |= {"clean %": f"{clean:.1f}", "PGD-50 %": f"{robust:.1f} +- {noise:.1f}"}
        scored = f", scored on {len(test)} test images"
    rate, reached = matrix_rate(device), flops / median(mine)
    here = environment(str(device))
    text = (
        f"PGD-{recipe.inner.steps}, batch {batch}, ours in {session.precision}, {torch.get_num_threads()} threads, "
        f"{rounds} rounds of {steps} steps{scored}; {here['device_name']}, Python {here['python']}, "
        f"torch {here['torch']}, advbench {here['advbench']}; {date.today()}\n\n{report.table(rows)}\n"
        f"Ours: {reached / 1e12:.3g} of {rate / 1e12:.3g} TFLOP/s in bf16 matrix products, {reached / rate:.0%}.\n"
    )
    heading = f"training by {given.method}: {arch} on {dataset}"
    print(f"{heading}\n{text}")
    if given.out:
        report.write(given.out, report.SPEED, heading, text)


if __name__ == "__main__":
    try:
        main()
    except UserError as wrong:
        sys.exit(f"error: {wrong}")
