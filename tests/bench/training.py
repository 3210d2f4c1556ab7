"""Our training loop beside the plain one that papers' code uses: same net, weights, images, method, batch and steps.

    python tests/bench/training.py [--method pgd-at|trades] [--steps K] [--rounds R] [--batch-size B] [--threads T]
        [--precision fp32|bf16] [--set FIELD=VALUE] [--long] [--cuda]

The plain loop: fp32 (TF32 on CUDA), NCHW, a DataLoader of 2 workers with torchvision's transforms of PIL images,
loss.backward() inside the attack, .item() in every step; in a process of its own, so that nothing of ours helps it.
Rounds alternate, and the median of the ratios counts, so that other work on the machine slows both alike.
--long trains both for 1,500 steps, or as many as --steps and --rounds say, and scores them by PGD-50.
--cuda: ResNet-18, CIFAR-10, PGD-10, batch 512, and the share of the bf16 matrix rate that is reached.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.evaluator import evaluate
from advbench.evaluator.evaluate import bare
from advbench.models.base import Model
from advbench.recipe import Recipe
from advbench.trainer.optim import factor
from advbench.trainer.session import Session


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images as torchvision's datasets hand them out: a PIL image through transforms, one after the other."""

    def __init__(self, data: Dataset, crop: int, flip: bool) -> None:
        pictures = (data.images.float() * (255 / data.scale)).round().to(torch.uint8)  # digits are to 16 alone
        self.images = pictures.permute(0, 2, 3, 1).numpy()
        self.labels = data.labels.tolist()
        side = data.shape[1]
        steps = [transforms.ToPILImage()]
        steps += [transforms.RandomCrop(side, padding=crop)] if crop else []
        steps += [transforms.RandomHorizontalFlip()] if flip else []
        self.transform = transforms.Compose([*steps, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(np.ascontiguousarray(self.images[index])), self.labels[index]


@dataclass(frozen=True)
class Task:
    """What both loops are to do."""

    recipe: Recipe
    net: Model
    data: Dataset
    device: str
    workers: int
    threads: int


class Plain:
    """The loop of papers' code, for Linf, SGD, and nets of one optimiser."""

    def __init__(self, task: Task) -> None:
        self.recipe, self.device, self.total = task.recipe, torch.device(task.device), 0
        self.net = deepcopy(task.net).to(self.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        optim, augment = self.recipe.optim, self.recipe.augment
        self.opt = torch.optim.SGD(
            self.net.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        self.loader = DataLoader(
            Pictures(task.data, augment.crop, augment.flip),
            batch_size=self.recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=task.workers,
            multiprocessing_context="fork" if task.workers else None,  # as on Linux; this process was spawned
            pin_memory=self.device.type == "cuda",
        )
        self.batches: Iterator[tuple[Tensor, Tensor]] = iter(self.loader)
        self.steps = self.recipe.epochs * len(self.loader)
        self.loss = 0.0

    def step(self) -> None:
        try:
            x, y = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            x, y = next(self.batches)
        x, y = x.to(self.device), y.to(self.device)
        progress = self.total / self.steps
        for group in self.opt.param_groups:
            group["lr"] = self.recipe.optim.lr * factor(self.recipe.schedule, progress)
        warmup = self.recipe.inner.warmup
        eps = self.recipe.threat.eps_value * (min(1.0, progress / warmup) if warmup else 1.0)
        loss = self.trades(x, y, eps) if self.recipe.method.name == "trades" else self.madry(x, y, eps)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        self.loss += loss.item()
        self.total += 1

    def attack(self, x: Tensor, start: Tensor, eps: float, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        self.net.eval()
        z = start
        for _ in range(self.recipe.inner.steps):
            z = z.detach().requires_grad_()
            loss_of(z).backward()
            assert z.grad is not None
            z = z.detach() + self.recipe.inner.rel_step * eps * z.grad.sign()
            z = torch.min(torch.max(z, x - eps), x + eps).clamp(0, 1)
        self.net.train()
        return z.detach()

    def madry(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        start = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        z = self.attack(x, start, eps, lambda z: functional.cross_entropy(self.net(z), y))
        return functional.cross_entropy(self.net(z), y, label_smoothing=self.recipe.label_smoothing)

    def trades(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        def kl(z: Tensor, clean: Tensor) -> Tensor:
            return functional.kl_div(
                functional.log_softmax(self.net(z), 1), functional.softmax(clean, 1), reduction="batchmean"
            )

        # As released: the clean answer is computed anew in each step.
        z = self.attack(x, x + 0.001 * torch.randn_like(x), eps, lambda z: kl(z, self.net(x)))
        clean = self.net(x)
        natural = functional.cross_entropy(clean, y, label_smoothing=self.recipe.label_smoothing)
        beta = self.recipe.method.settings["beta"]
        assert isinstance(beta, float)
        return natural + beta * kl(z, clean)


def serve(task: Task, pipe: Connection) -> None:
    """The plain loop in its process: a number of steps is answered by seconds a step, 0 by the net."""
    torch.set_num_threads(task.threads)
    torch.set_float32_matmul_precision("high")
    plain = Plain(task)
    timed(plain.step, 2, plain.device)  # warm-up: what is made once is not timed
    plain = Plain(task)
    while steps := pipe.recv():
        pipe.send(timed(plain.step, steps, plain.device))
    pipe.send(plain.net.cpu())
    pipe.recv()  # its tensors are shared memory: gone with this process


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


@dataclass(frozen=True)
class Timed:
    """Seconds a step of both in one round."""

    plain: float
    ours: float


def timed(run: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    for _ in range(steps):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a bf16 matrix product: 8192 a side on CUDA, 2048 on a CPU; the best of several."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    timed(lambda: a @ a, 2, device)  # type: ignore[arg-type, return-value]
    return float(2 * side**3 / min(timed(lambda: a @ a, 5, device) for _ in range(5)))  # type: ignore[arg-type, return-value]


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
    record = evaluate(bare(net, data), data, attack="pgd", settings={"steps": 50}, eps=[eps]).record
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
    given = parser.parse_args()
    if given.cuda and not torch.cuda.is_available():
        sys.exit("error: bench-cuda measures on an NVIDIA GPU, and there is no CUDA device here")
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
    task = Task(
        recipe, deepcopy(session.nets.f).cpu(), session.data.to("cpu"), str(device), given.workers, given.threads
    )
    context = multiprocessing.get_context("spawn")
    pipe, far = context.Pipe()
    process = context.Process(target=serve, args=(task, far))
    process.start()
    pairs = []
    for _ in range(rounds):
        pipe.send(steps)
        pairs.append(Timed(pipe.recv(), timed(ours.step, steps, device)))
    pipe.send(0)
    theirs = deepcopy(pipe.recv())
    pipe.send(0)
    process.join()
    ratio = median(pair.plain / pair.ours for pair in pairs)
    print(
        f"{given.method}, {arch} on {dataset}, PGD-{recipe.inner.steps}, batch {batch}, {device} in "
        f"{session.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} x {steps} steps"
    )
    for name, seconds in (("plain loop", median(p.plain for p in pairs)), ("ours", median(p.ours for p in pairs))):
        print(f"{name:<12}{batch / seconds:>10,.0f} images/s   epoch {epoch * seconds:,.1f} s")
    each = ", ".join(f"{pair.plain / pair.ours:.2f}" for pair in pairs)
    print(f"ratio        {ratio:>10.2f} (rounds: {each})")
    rate, reached = matrix_rate(device), flops / median(pair.ours for pair in pairs)
    print(f"{reached / 1e12:.3g} of {rate / 1e12:.3g} TFLOP/s in bf16 matrix products: {reached / rate:.0%}")
    if given.long:
        test = load(dataset, "test")
        test = test.subset(range(min(given.n, len(test))))
        for name, net in (("plain loop", theirs), ("ours", session.nets.f)):
            clean, robust = accuracy(net, test, recipe.threat.eps)
            noise = 100 * (robust / 100 * (1 - robust / 100) / len(test)) ** 0.5
            print(f"{name:<12}clean {clean:.1f} %, PGD-50 {robust:.1f} % (+- {noise:.1f}) on {len(test)} test images")


if __name__ == "__main__":
    try:
        main()
    except UserError as wrong:
        sys.exit(f"error: {wrong}")
