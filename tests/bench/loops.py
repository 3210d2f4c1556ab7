"""The loops that ours is measured beside, each in a process of its own, so that nothing of ours helps it.

All have the same net, weights, optimiser, schedule, eps and step, in fp32 (TF32 on CUDA) and NCHW, and the batches of a
DataLoader with torchvision's transforms of PIL images.
plain: what papers' code does, loss.backward() inside the attack and .item() in every step.
mair: the same about torchattacks' PGD and TPGD objects, of which MAIR's trainers keep copies.
art: ART's AdversarialTrainerMadryPGD, given batch after batch. Its attack climbs the loss that is trained, smoothed
labels included, and then asks for the answers to both images to log a rate of success: two passes forward more.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection

import numpy as np
import torch
from peers import Counted
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

from advbench.data.dataset import Dataset
from advbench.models.base import Model
from advbench.recipe import Recipe
from advbench.trainer.optim import factor


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
    """What all loops are to do."""

    recipe: Recipe
    net: Model
    data: Dataset
    device: str
    workers: int
    threads: int


class Loop(ABC):
    """Batches, learning rate and eps; for Linf, SGD, and nets of one optimiser."""

    def __init__(self, task: Task) -> None:
        self.recipe, self.device, self.total = task.recipe, torch.device(task.device), 0
        self.trades = self.recipe.method.name == "trades"
        net = deepcopy(task.net).to(self.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.net = Counted(net).train()
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

    def step(self) -> None:
        try:
            x, y = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            x, y = next(self.batches)
        progress = self.total / self.steps
        for group in self.opt.param_groups:
            group["lr"] = self.recipe.optim.lr * factor(self.recipe.schedule, progress)
        warmup = self.recipe.inner.warmup
        self.learn(x, y, self.recipe.threat.eps_value * (min(1.0, progress / warmup) if warmup else 1.0))
        self.total += 1

    @abstractmethod
    def learn(self, x: Tensor, y: Tensor, eps: float) -> None:
        """One update on a batch that lies on the CPU."""


class Plain(Loop):
    """The loop of papers' code; for TRADES, as released, the clean answer is computed anew in each step."""

    loss = 0.0

    def learn(self, x: Tensor, y: Tensor, eps: float) -> None:
        x, y = x.to(self.device), y.to(self.device)
        loss = self.outer(x, self.attack(x, y, eps), y)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        self.loss += loss.item()

    def attack(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        self.net.eval()
        if self.trades:
            z = x + 0.001 * torch.randn_like(x)
        else:
            z = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(self.recipe.inner.steps):
            z = z.detach().requires_grad_()
            loss = kl(self.net(z), self.net(x)) if self.trades else functional.cross_entropy(self.net(z), y)
            loss.backward()
            assert z.grad is not None
            z = z.detach() + self.recipe.inner.rel_step * eps * z.grad.sign()
            z = torch.min(torch.max(z, x - eps), x + eps).clamp(0, 1)
        self.net.train()
        return z.detach()

    def outer(self, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        smoothing = self.recipe.label_smoothing
        if not self.trades:
            return functional.cross_entropy(self.net(z), y, label_smoothing=smoothing)
        clean = self.net(x)
        beta = self.recipe.method.settings["beta"]
        assert isinstance(beta, float)
        return functional.cross_entropy(clean, y, label_smoothing=smoothing) + beta * kl(self.net(z), clean)


class Mair(Plain):
    """The same with the attack object of a library, made once."""

    def __init__(self, task: Task) -> None:
        import torchattacks  # type: ignore[import-not-found]

        super().__init__(task)
        kind = torchattacks.TPGD if self.trades else torchattacks.PGD
        self.found = kind(self.net, steps=self.recipe.inner.steps)

    def attack(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        self.found.eps, self.found.alpha = eps, self.recipe.inner.rel_step * eps
        return self.found(x, y)  # type: ignore[no-any-return]


class Art(Loop):
    """A trainer of NumPy arrays. It has no TRADES."""

    def __init__(self, task: Task) -> None:
        from art.defences.trainer import AdversarialTrainerMadryPGD  # type: ignore[import-not-found]
        from art.estimators.classification import PyTorchClassifier  # type: ignore[import-not-found]

        super().__init__(task)
        model = PyTorchClassifier(
            self.net,
            nn.CrossEntropyLoss(label_smoothing=self.recipe.label_smoothing),
            task.data.shape,
            task.data.num_classes,
            optimizer=self.opt,
            clip_values=(0.0, 1.0),
            device_type="gpu" if self.device.type == "cuda" else "cpu",
        )
        self.trainer = AdversarialTrainerMadryPGD(model, max_iter=self.recipe.inner.steps)
        self.trainer.attack.set_params(batch_size=self.recipe.batch_size)  # it attacks 32 at a time otherwise

    def learn(self, x: Tensor, y: Tensor, eps: float) -> None:
        eps = max(eps, 1e-9)  # its steps must be positive
        self.trainer.attack.set_params(eps=eps, eps_step=self.recipe.inner.rel_step * eps)
        self.trainer.fit(x.numpy(), y.numpy(), batch_size=len(x), nb_epochs=1)


LOOPS: dict[str, type[Loop]] = {"plain": Plain, "mair": Mair, "art": Art}
PACKAGES = {"mair": "torchattacks", "art": "adversarial-robustness-toolbox"}


def available(method: str) -> tuple[dict[str, str], dict[str, str]]:
    """The loops that can train by `method`, each with what it is; and the others, each with the reason."""
    found, missing = {"plain": "plain loop"}, {}
    for name, package in PACKAGES.items():
        try:
            found[name] = f"{name} ({package} {metadata.version(package)})"
        except metadata.PackageNotFoundError:
            missing[name] = f"{package} is not installed"
    if method == "trades" and found.pop("art", ""):
        missing["art"] = "it has no TRADES"
    return found, missing


def kl(given: Tensor, target: Tensor) -> Tensor:
    """KL(target || given) of logits, the mean over the batch."""
    return functional.kl_div(functional.log_softmax(given, 1), functional.softmax(target, 1), reduction="batchmean")


def timed(run: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    for _ in range(steps):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def serve(name: str, task: Task, pipe: Connection) -> None:
    """A loop in its process: tells the passes forward and backward an image; then a number of steps is answered by
    seconds a step, 0 by the net."""
    torch.set_num_threads(task.threads)
    torch.set_float32_matmul_precision("high")
    loop = LOOPS[name](task)
    timed(loop.step, 2, loop.device)  # warm-up: what is made once is not timed
    images = 2 * task.recipe.batch_size
    pipe.send((loop.net.forwards / images, loop.net.backwards / images))
    loop = LOOPS[name](task)
    while steps := pipe.recv():
        pipe.send(timed(loop.step, steps, loop.device))
    pipe.send(loop.net.net.cpu())
    pipe.recv()  # its tensors are shared memory: gone with this process
