"""A training run in memory: nets, optimisers, data and position. Its `state` is all that resuming needs."""

from __future__ import annotations

import copy
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from advbench import ranks, rng
from advbench.allocator import keep_freed
from advbench.data.augment import crop_flip, cutout
from advbench.data.autoaugment import autoaugment
from advbench.data.batches import epoch_order
from advbench.engine.compiled import Compiled
from advbench.engine.kernels import has_bf16, out_of_memory
from advbench.engine.search_copy.first_layer import narrow_gradients
from advbench.errors import UserError, explained
from advbench.methods.base import Nets, Setup, make
from advbench.models.base import Model
from advbench.models.outside import Outside
from advbench.recipe import Optim, Recipe
from advbench.rng import fold, keys
from advbench.trainer.averaging import Averaged
from advbench.trainer.layout import to_layout
from advbench.trainer.modes import fixed_weights
from advbench.trainer.optim import factor, optimizer
from advbench.trainer.prepare import images, network, precision
from advbench.trainer.start import start_from
from advbench.trainer.tools import Counter, Tools

_NEEDS = {
    "features": "a net that ends in a linear layer, or model.features=LAYER, the layer whose output are the features",
    "head": "a net whose logits are a linear layer of its features",
    "maps": "a net with feature maps, or model.maps=LAYER, the layer whose output they are",
}


class Diverged(UserError):
    """The loss of a training is no longer finite."""


class Session:
    """The run of a recipe on a device. Raises UserError if parts of the recipe do not fit together.

    `fresh`: whether it starts from the recipe's initial weights, if it has any; else `restore` follows. `notes`: for
    the user.
    """

    def __init__(self, recipe: Recipe, device: torch.device, *, fresh: bool = True) -> None:
        self.recipe = recipe
        self.device = device
        if device.type == "cpu":
            keep_freed()
        self.method = make(recipe)
        self.data, self.held_out, self.data_sha256 = images(recipe, device)
        self.method.check(recipe, self.data.num_classes)
        if recipe.augment.policy == "autoaugment":
            if self.data.scale != 255:
                raise UserError(f"augment.policy autoaugment needs values up to 255, which {self.data.name} lacks")
            if (channels := self.data.shape[0]) not in (1, 3):
                raise UserError(f"augment.policy autoaugment needs 1 or 3 channels: {self.data.name} has {channels}")
        for name, size in {"crop": recipe.augment.crop, "cutout": recipe.augment.cutout}.items():
            if size > max(self.data.shape[1:]):
                raise UserError(f"augment.{name} {size} is more than the side of the {self.data.name} images")
        self.batch_size = min(recipe.batch_size, len(self.data))
        self.steps = len(self.data) // self.batch_size
        self.rows = self.batch_size // ranks.world()  # this process's share of a batch
        if self.rows * ranks.world() < self.batch_size:
            raise UserError(
                f"a batch of {self.batch_size} images cannot be divided among {ranks.world()} processes: "
                f"set batch_size to a multiple of {ranks.world()}"
            )
        self.autocast, self.precision = precision(recipe, device)
        f = self.method.wrap(network(recipe, self.data, recipe.seed), recipe.seed)
        repeating = [net for net in f.modules() if isinstance(net, Outside) and net.repeat > 1]
        self.notes = [f"{net.arch} receives the grey images' channel {net.repeat} times" for net in repeating]
        if recipe.epochs * self.steps == 1 and not factor(recipe.schedule, 0.0):
            self.notes.append(
                f"the only update is at the rate 0 with which schedule {recipe.schedule.name} begins, and changes "
                "nothing: set epochs=2 or more, a smaller batch_size, or schedule.name=constant"
            )
        if self.method.attacks and recipe.validation.select == "clean":
            self.notes.append(
                "the best epoch is chosen by clean accuracy, though the training is adversarial: "
                "set validation.select=robust, or last for the last epoch"
            )
        if recipe.init is not None and fresh:
            self.notes += start_from(f, recipe.init)
        self.layout = to_layout(f.to(device), self.data.batch(slice(0, 2))[0])
        self._try(f)
        for what in self.method.needs:
            if not getattr(f, f"has_{what}"):
                raise UserError(f"{recipe.method.name} needs {_NEEDS[what]}, which {recipe.model.arch} lacks")
        parts = self.method.parts(self._setup(f))
        if ranks.world() > 1 and recipe.bn == "sync":
            if device.type != "cuda":
                raise UserError("bn sync works only on CUDA: set bn=local")
            f = nn.SyncBatchNorm.convert_sync_batchnorm(f)
            parts = {name: nn.SyncBatchNorm.convert_sync_batchnorm(part) for name, part in parts.items()}
        for net in (f, *parts.values()):
            net.to(device=device, memory_format=self.layout).train()  # type: ignore[call-overload]
        self.nets = Nets(f, parts, recipe.label_smoothing)
        self.averaged = Averaged(recipe.average, f) if recipe.average.name != "none" else None
        self.counter = Counter()
        for net in (f, *parts.values()):
            if isinstance(net, Model):
                self.counter.watch(net)

        self.compiled = self._compile()
        attack_context = partial(fixed_weights if self.compiled else narrow_gradients, (f, *parts.values()))
        self.tools = Tools(recipe, self.nets, self._optimizers(), self.autocast, attack_context)
        self.base_lr = {name: o.param_groups[0]["lr"] for name, o in self.tools.optimizers.items()}
        self.epoch = 0
        self.position = 0  # how many steps of the epoch are done
        self.updates = 0  # of weights; a step makes one or, by the method, several
        self.sums: dict[str, Tensor] = {}
        # The number of the first batch, over all epochs, whose loss was not finite; -1 if none was.
        self.bad_batch = torch.full((), -1, dtype=torch.int64, device=device)

    @property
    def progress(self) -> float:
        """The share of the training that is done, 0 to 1."""
        return (self.epoch * self.steps + self.position) / (self.recipe.epochs * self.steps)

    @property
    def images(self) -> int:
        """How many training images have been seen so far, counted with repetition."""
        return (self.epoch * self.steps + self.position) * self.batch_size

    @property
    def peak_memory(self) -> int:
        """In bytes: the allocated device memory on CUDA, the memory of the whole process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def deployed(self) -> Model:
        """The net that is validated and saved: the averaged one if the recipe averages."""
        return self.averaged.net if self.averaged else self.nets.f

    @property
    def lr(self) -> float:
        """The learning rate of f at the last step of this epoch."""
        done = (self.epoch * self.steps + self.steps - 1) / (self.recipe.epochs * self.steps)
        return self.base_lr["f"] * factor(self.recipe.schedule, done)

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Inside, nets compute as in the attacks of the training: in its precision, for gradients of images alone."""
        with self.autocast(), self.tools.attack_context():
            yield

    @contextmanager
    def enough_memory(self) -> Iterator[None]:
        """Raise UserError where memory runs out inside. What was saved of the run is still there to be resumed."""
        try:
            yield
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            half = "--precision bf16, " if self.precision == "fp32" and has_bf16(self.device) else ""
            raise UserError(
                f"out of memory at batch_size {self.recipe.batch_size} in {self.precision}: train with a smaller "
                f"batch_size, {half}or a smaller model, or free some and go on with --resume"
            ) from error

    def _try(self, f: Model) -> None:
        """Raise UserError where a net from outside cannot be trained or attacked, or any net on batches of one image.

        Tried on a copy of f, before anything is written.
        """
        alone = self.rows * self.method.views == 1 and not (ranks.world() > 1 and self.recipe.bn == "sync")
        outside = ":" in f.arch
        if not (alone or outside):
            return
        x, y = self.data.batch(slice(0, self.rows if alone else max(self.rows, 2)))
        x = x.repeat(self.method.views, 1, 1, 1).contiguous(memory_format=self.layout)
        trial = copy.deepcopy(f)
        with rng.kept():
            if outside:
                if any(isinstance(part, torch.jit.ScriptModule) for part in f.modules()):
                    raise UserError(
                        f"{f.arch} is TorchScript, which is not trained: name the class that it was made of"
                    )
                if not any(weight.requires_grad for weight in f.parameters()):
                    raise UserError(f"{f.arch} has no weights to train")
                with explained(f"{f.arch} cannot be trained on {'x'.join(map(str, self.data.shape))} images"):
                    x.requires_grad_()
                    logits = trial.eval()(x)
                    if logits.shape != (len(x), self.data.num_classes):
                        known = f"(B, {self.data.num_classes}), as {self.data.name} has classes"
                        raise UserError(f"{f.arch} returns logits {tuple(logits.shape)}, not {known}")
                    loss = functional.cross_entropy(logits.float(), y.repeat(self.method.views))
                    reached = loss.requires_grad and torch.autograd.grad(loss, x, allow_unused=True)[0] is not None
                if not reached:
                    raise UserError(f"{f.arch} gives no gradient with respect to the image: it cannot be attacked")
            hint = " on one image at a time: set batch_size to 2 or more" if alone else " in train mode"
            with explained(f"{f.arch} cannot be trained{hint}"):
                trial.train()(x)

    def step(self, order: Tensor) -> None:
        """Train on the next batch of this epoch's `order`. Nothing here makes the host wait for the device."""
        nets, recipe = self.nets, self.recipe
        nets.progress = self.progress
        scale = factor(recipe.schedule, nets.progress)
        for name, opt in self.tools.optimizers.items():
            for group in opt.param_groups:
                group["lr"] = self.base_lr[name] * scale
        first = self.position * self.batch_size + ranks.rank() * self.rows
        x, y = self._batch(order[first : first + self.rows])
        nets.notes.clear()
        with (
            explained(f"{nets.f.arch} failed in training") if ":" in nets.f.arch else nullcontext(),
            self.enough_memory(),
            self.autocast(),
        ):
            before = self.tools.updates
            terms = self.method.step(nets, x, y, self.tools)
            self.updates += max(1, self.tools.updates - before)  # a method may update f by itself
        self._add_to_sums(terms, nets.notes)
        self._average_statistics()
        self.position += 1
        if self.averaged:
            self.averaged.after_step(nets.f, self.progress)
            if self.position == self.steps:
                self.averaged.after_epoch(nets.f, self.progress)

    def _compile(self) -> list[Compiled]:
        """Compile the nets of the zoo, unless the method differentiates gradients. Returns those that were compiled."""
        backend = self.recipe.compile
        if backend == "auto":
            backend = "inductor" if self.device.type == "cuda" else "off"
        if backend == "off" or not self.method.compiles:
            return []
        torch._dynamo.reset()  # it compiles few graphs a process, of which an earlier run may have left none
        nets = [net for net in (self.nets.f, *self.nets.parts.values()) if isinstance(net, Model)]
        return [Compiled(net, backend, self.counter, what="training") for net in nets]

    @property
    def compile_status(self) -> str:
        """The backend that compiles the nets, or "off" with the reason if there is one."""
        return ", ".join(dict.fromkeys(net.status for net in self.compiled)) or "off"

    def _average_statistics(self) -> None:
        """Replace BatchNorm's running statistics in every process by their mean over the processes."""
        if ranks.world() > 1 and self.recipe.bn == "local":
            modules = [m for net in (self.nets.f, *self.nets.parts.values()) for m in net.modules()]
            norms = [m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]
            ranks.average_([value for m in norms for value in (m.running_mean, m.running_var) if value is not None])

    def order(self) -> Tensor:
        """The rows of the training images in the order of this epoch, int64 (N,)."""
        return epoch_order(len(self.data), self.recipe.seed, self.epoch, self.device)

    def end_epoch(self) -> None:
        """Move to the next epoch."""
        self.epoch, self.position = self.epoch + 1, 0
        self.sums.clear()

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """Loss terms ("loss" is their sum) and notes, averaged over the epoch so far. Waits for device and ranks."""
        sums = {name: total.clone() for name, total in self.sums.items()}
        ranks.average_(list(sums.values()))
        values = {name: total.item() / max(self.position, 1) for name, total in sums.items()}
        notes = {name.removeprefix("note:"): v for name, v in values.items() if name.startswith("note:")}
        return {name: v for name, v in values.items() if not name.startswith("note:")}, notes

    def check(self) -> None:
        """Raise Diverged if a loss was not finite, or the weights are not. Waits for the device and all ranks."""
        bad = min((batch for batch in ranks.gather_objects(int(self.bad_batch)) if batch >= 0), default=-1)
        if bad >= 0:
            raise Diverged(
                f"the loss is not finite from epoch {bad // self.steps + 1}, batch {bad % self.steps + 1} of "
                f"{self.steps} on: lower optim.lr, or set optim.clip"
            )
        if not all(weight.isfinite().all() for weight in self.deployed.parameters()):  # which no loss has told yet
            raise Diverged("the last update made weights that are not finite: lower optim.lr, or set optim.clip")

    def state(self) -> dict[str, Any]:
        """Everything that changes during training, as tensors and plain values. Waits for all ranks."""
        own = {
            "sums": {name: value.cpu() for name, value in self.sums.items()},
            "parts": {name: _buffers(part) for name, part in self.nets.parts.items()},
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        return {
            "epoch": self.epoch,
            "position": self.position,
            "sums": dict(self.sums),
            "f": self.nets.f.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.nets.parts.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.tools.optimizers.items()},
            "averaged": {"net": self.averaged.net.state_dict(), "count": self.averaged.count} if self.averaged else {},
            "passes": [self.counter.forwards, self.counter.backwards],
            "updates": self.updates,
            "rng": own["rng"],
            "rng_cuda": own["rng_cuda"],
            "others": ranks.gather_objects(own)[1:],  # what differs in the other processes
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Return to the moment at which `state` was taken. Raises UserError for another number of processes."""
        count = 1 + len(state.get("others", []))
        if count != ranks.world():
            raise UserError(
                f"the run was begun by {count} processes and there are {ranks.world()} here: "
                "resume with the same number of processes"
            )
        if ranks.rank():
            own = state["others"][ranks.rank() - 1]
            parts = {name: {**whole, **own["parts"][name]} for name, whole in state["parts"].items()}
            state = {**state, **own, "parts": parts}
        self.epoch, self.position = state["epoch"], state["position"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.nets.f.load_state_dict(state["f"])
        for name, part in self.nets.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, opt in self.tools.optimizers.items():
            opt.load_state_dict(state["optimizers"][name])
        if self.averaged:
            self.averaged.net.load_state_dict(state["averaged"]["net"])
            self.averaged.count = state["averaged"]["count"]
        self.counter.forwards, self.counter.backwards = state["passes"]
        self.updates = state.get("updates", self.epoch * self.steps + self.position)  # begun before it was counted
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda" and state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"].cpu(), self.device)

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x (views x B, C, H, W) and y (views x B,), view by view. Sets the keys and indices of the nets."""
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

    def _add_to_sums(self, terms: dict[str, Tensor], notes: dict[str, Tensor]) -> None:
        loss = torch.stack([value.float() for value in terms.values()]).sum()
        batch = self.epoch * self.steps + self.position
        self.bad_batch = torch.where((self.bad_batch < 0) & ~loss.isfinite(), batch, self.bad_batch)
        values = {"loss": loss, **terms, **{f"note:{name}": value for name, value in notes.items()}}
        for name, value in values.items():
            # In float64, so that the sum does not depend on when a run was interrupted and read.
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
            shape=f.shape,
            feature_dim=f.feature_dim,
            batch_size=self.rows * self.method.views,
            seed=seed,
            build=partial(network, self.recipe, self.data),
        )


def _buffers(part: nn.Module) -> dict[str, Tensor]:
    """The saved buffers of a part. They may differ between ranks, since each rank sees other rows of a batch."""
    saved = part.state_dict()
    return {name: saved[name].cpu() for name, _ in part.named_buffers() if name in saved}
