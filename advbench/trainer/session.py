"""A training run in memory: nets, optimisers, data, and where it stands. Its `state` is all that resuming needs."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from advbench.allocator import keep_freed
from advbench.data import load
from advbench.data.augment import crop_flip, cutout
from advbench.data.autoaugment import autoaugment
from advbench.data.batches import epoch_order
from advbench.data.dataset import Dataset, split_validation
from advbench.errors import UserError
from advbench.methods.base import Nets, Setup, make
from advbench.models import build, parse_wrapper, wrap, wrappers
from advbench.models.base import Model
from advbench.recipe import Optim, Recipe
from advbench.rng import fold, keys
from advbench.trainer.averaging import Averaged
from advbench.trainer.optim import factor, optimizer
from advbench.trainer.tools import Counter, Tools


class Session:
    """What a recipe makes, on a device. Raises UserError for what does not fit together."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        if device.type == "cpu":
            keep_freed()
        self.method = make(recipe)
        self.data, self.held_out, self.data_sha256 = _data(recipe, device)
        self.method.check(recipe, self.data.num_classes)
        if recipe.augment.policy == "autoaugment" and self.data.scale != 255:
            raise UserError(f"augment.policy autoaugment is made for values to 255, which {self.data.name} has not")
        self.batch_size = min(recipe.batch_size, len(self.data))
        self.steps = len(self.data) // self.batch_size
        self.autocast, self.precision = _precision(recipe, device)
        # NHWC: what tensor cores want, and 1.2 to 1.3 times as fast on a CPU for nets such as small_cnn.
        self.layout = torch.channels_last

        f = self.method.wrap(_network(recipe, self.data, recipe.seed), recipe.seed)
        if self.method.needs_maps and not f.has_maps:
            raise UserError(f"{recipe.method.name} needs a model with feature maps, which {recipe.model.arch} has not")
        parts = self.method.parts(self._setup(f))
        for net in (f, *parts.values()):
            net.to(device=device, memory_format=self.layout).train()  # type: ignore[call-overload]
        self.nets = Nets(f, parts, recipe.label_smoothing)
        self.averaged = Averaged(recipe.average, f) if recipe.average.name != "none" else None
        self.counter = Counter()
        for net in (f, *parts.values()):
            if isinstance(net, Model):
                self.counter.watch(net)

        self.tools = Tools(recipe, self.nets, self._optimizers(), self.autocast)
        self.base_lr = {name: o.param_groups[0]["lr"] for name, o in self.tools.optimizers.items()}
        self.epoch = 0
        self.position = 0  # steps of the epoch that are done
        self.sums: dict[str, Tensor] = {}
        self.bad = torch.full((), -1, dtype=torch.int64, device=device)  # the first batch with a loss not finite

    @property
    def progress(self) -> float:
        return (self.epoch * self.steps + self.position) / (self.recipe.epochs * self.steps)

    @property
    def images(self) -> int:
        """Training images seen so far."""
        return (self.epoch * self.steps + self.position) * self.batch_size

    @property
    def peak_memory(self) -> int:
        """Bytes: of the device's memory on CUDA, of the whole process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def deployed(self) -> Model:
        """The net that is validated and kept: the average where there is one."""
        return self.averaged.net if self.averaged else self.nets.f

    @property
    def lr(self) -> float:
        """The main net's learning rate at the step to come."""
        return self.base_lr["f"] * factor(self.recipe.schedule, self.progress)

    def step(self, order: Tensor) -> None:
        """One batch: the next rows of this epoch's `order`. Nothing here waits for the device."""
        nets, recipe = self.nets, self.recipe
        nets.progress = self.progress
        scale = factor(recipe.schedule, nets.progress)
        for name, opt in self.tools.optimizers.items():
            for group in opt.param_groups:
                group["lr"] = self.base_lr[name] * scale
        x, y = self._batch(order[self.position * self.batch_size : (self.position + 1) * self.batch_size])
        nets.notes.clear()
        with self.autocast():
            terms = self.method.step(nets, x, y, self.tools)
        self._account(terms, nets.notes)
        self.position += 1
        if self.averaged:
            self.averaged.after_step(nets.f, self.progress)

    def order(self) -> Tensor:
        """The rows of this epoch, in the order it visits them."""
        return epoch_order(len(self.data), self.recipe.seed, self.epoch, self.device)

    def end_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.position = self.epoch + 1, 0
        self.sums.clear()
        if self.averaged:
            self.averaged.after_epoch(self.nets.f, self.progress)

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """Loss terms ("loss" is their sum) and notes, averaged over the epoch so far. Waits for the device."""
        steps = max(self.position, 1)
        values = {name: total.item() / steps for name, total in self.sums.items()}
        notes = {name.removeprefix("note:"): v for name, v in values.items() if name.startswith("note:")}
        return {name: v for name, v in values.items() if not name.startswith("note:")}, notes

    def check(self) -> None:
        """UserError when a loss was not finite. Waits for the device."""
        bad = int(self.bad)
        if bad >= 0:
            raise UserError(
                f"the loss is not finite from epoch {bad // self.steps + 1}, batch {bad % self.steps + 1} of "
                f"{self.steps} on: lower optim.lr, or set optim.clip"
            )

    def state(self) -> dict[str, Any]:
        """Everything that changes while training, as tensors and plain values."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "sums": dict(self.sums),
            "f": self.nets.f.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.nets.parts.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.tools.optimizers.items()},
            "averaged": {"net": self.averaged.net.state_dict(), "count": self.averaged.count} if self.averaged else {},
            "passes": [self.counter.forwards, self.counter.backwards],
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]
        self.sums = dict(state["sums"])
        self.nets.f.load_state_dict(state["f"])
        for name, part in self.nets.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, opt in self.tools.optimizers.items():
            opt.load_state_dict(state["optimizers"][name])
        if self.averaged:
            self.averaged.net.load_state_dict(state["averaged"]["net"])
            self.averaged.count = state["averaged"]["count"]
        self.counter.forwards, self.counter.backwards = state["passes"]
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda" and state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"].cpu(), self.device)

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x (views x B, C, H, W), y, one augmented view after the other; and the nets' keys."""
        recipe, nets, augment = self.recipe, self.nets, self.recipe.augment
        images, labels, index = self.data.images[rows], self.data.labels[rows], self.data.indices[rows]
        copies = []
        for view in range(self.method.views):
            seen, drawn = images, {"seed": recipe.seed, "epoch": self.epoch, "view": view}
            if augment.crop or augment.flip:
                seen = crop_flip(seen, index, pad=augment.crop, flip=augment.flip, **drawn)
            if augment.policy == "autoaugment":
                seen = autoaugment(seen, index, **drawn)
            if augment.cutout:
                seen = cutout(seen, index, size=augment.cutout, **drawn)
            copies.append(seen)
        key = keys(recipe.seed, "train", index, self.epoch)
        nets.key = torch.cat([fold(key, view) for view in range(self.method.views)])
        nets.index = index.repeat(self.method.views)
        x = self.data.pixels(torch.cat(copies)).contiguous(memory_format=self.layout)
        return x, labels.repeat(self.method.views)

    def _account(self, terms: dict[str, Tensor], notes: dict[str, Tensor]) -> None:
        loss = torch.stack([value.float() for value in terms.values()]).sum()
        now = self.epoch * self.steps + self.position
        self.bad = torch.where((self.bad < 0) & ~loss.isfinite(), now, self.bad)
        seen = {"loss": loss, **terms, **{f"note:{name}": value for name, value in notes.items()}}
        for name, value in seen.items():
            # In float64: the sum must not depend on when a run was interrupted and read.
            before = self.sums.get(name)
            self.sums[name] = value.double() if before is None else before + value.double()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        found = {"f": optimizer(self.recipe.optim, self.nets.f.parameters(), self.device)}
        for name, part in self.nets.parts.items():
            weights = [weight for weight in part.parameters() if weight.requires_grad]
            own = self.method.part_optim(name)
            if weights and own.get("lr") != 0:
                settings = Optim.model_validate({**self.recipe.optim.model_dump(), **own})
                found[name] = optimizer(settings, weights, self.device)
        return found

    def _setup(self, f: Model) -> Setup:
        seed = int(fold(torch.tensor([self.recipe.seed]), 1)) & (2**62 - 1)
        return Setup(
            recipe=self.recipe,
            num_classes=f.num_classes,
            in_channels=f.in_channels,
            image_size=f.image_size,
            feature_dim=f.feature_dim,
            batch_size=self.batch_size * self.method.views,
            class_names=self.data.class_names,
            seed=seed,
            build=partial(_network, self.recipe, self.data),
        )


def _network(recipe: Recipe, data: Dataset, seed: int) -> Model:
    """The recipe's architecture for the data's images, in its wrappers."""
    channels, height, width = data.shape
    if height != width:
        raise UserError(f"{data.name} has images of {height}x{width}: square ones are needed")
    outer = {name: value for name, value in recipe.model.settings.items() if name in wrappers()}
    own = {name: value for name, value in recipe.model.settings.items() if name not in outer}
    for name in ("num_classes", "in_channels", "image_size", "seed"):
        if name in own:
            raise UserError(f"model.{name} follows from the dataset and the seed: it cannot be set")
    net = build(
        recipe.model.arch,
        num_classes=data.num_classes,
        in_channels=channels,
        image_size=height,
        seed=seed,
        **own,  # type: ignore[arg-type]
    )
    for name, value in outer.items():
        net = wrap(net, name, seed=seed, **(value if isinstance(value, dict) else parse_wrapper(name, str(value))))
    return net


def _data(recipe: Recipe, device: torch.device) -> tuple[Dataset, Dataset | None, str]:
    """Training images, held-out images or None, both on the device, and the hash of the training images."""
    train, held_out = load(recipe.dataset, "train"), None
    if recipe.train_n:
        if recipe.train_n > len(train):
            raise UserError(f"train_n {recipe.train_n} is more than the {len(train)} training images of {train.name}")
        train = train.subset(range(recipe.train_n))
    sha256 = train.images_sha256
    if recipe.validation.fraction:
        train, held_out = split_validation(train, recipe.validation.fraction, recipe.validation.seed)
        held_out = held_out.subset(range(min(recipe.validation.n, len(held_out)))).to(device)
    return train.to(device), held_out, sha256


def _precision(recipe: Recipe, device: torch.device) -> tuple[Callable[[], AbstractContextManager[Any]], str]:
    """A maker of autocast contexts, and the precision they amount to."""
    name = recipe.precision
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    if name == "fp32":
        return nullcontext, name
    return partial(torch.autocast, device.type, dtype=torch.bfloat16), name
