"""An attack on the tasks of a multi-task run: Ghamizi et al., AAAI 2022, arXiv:2110.15053. Read in code.

PGD along sum_t w_t grad L_t(x_k), L_t the losses of the main task and of the auxiliary tasks. `attacked` sets the
weights:

sum       w_t = 1
relative  w_t = 1 / L_t(x_0), x_0 the clean image
wgd       w_t = r_t / mean_t r_t,  r_t = L_t(x_k) / L_t(x_0): the paper's definition 5, weighted gradient descent
cyclic    one task at each step in turn, the main task first

or it names one task to attack alone: main, or an auxiliary task. The released code's relative weights are the same for
all images of a batch, 1 / the mean loss at their random starts, after a first step along the plain sum. Here each image
has weights of its own, since a verdict must not depend on the other images: a task that the model is sure of on an
image weighs more there.

The attack is for study, not for measuring robustness: a point counts if the main task is misclassified, and raising all
losses raises the main loss less. `advbench analyze vulnerability` shows by how much, and the errors of the other tasks.
A task's random choices, such as an angle of rotation, depend only on the seed and the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advbench.attacks.pgd import PGD, PGDState
from advbench.checkpoint import BEST, Loaded, load_heads, weights_sha256
from advbench.engine.attack import Answer, Asks, Attack, Context, Problem, Samples, prepared
from advbench.engine.oracle import Oracle
from advbench.errors import UserError, unknown
from advbench.models.base import Model
from advbench.models.tasks import MAIN, Drawn, Head, answers, losses, sample_key
from advbench.recipe.fields import Count

ENTRIES: dict[str, dict[str, Any]] = {
    "multi-task": {
        "make": "MultiTask",
        "set": {"name": "multi-task"},
        "members": ["pgd"],
        "summary": "PGD on the tasks of a run, all or one (Ghamizi et al. 2022): a subject of study; "
        "autoattack gives the main task's worst case",
        "proof": {"quick": {"steps": 4}, "needs": {"l1 bound": 1.5}},
    },
}
COMBINED = ("sum", "relative", "wgd", "cyclic")
MIN_CLEAN_LOSS = 1e-8  # as a divisor


@dataclass(frozen=True, kw_only=True)
class MultiTask(PGD):
    """PGD on the tasks' losses, without targets.

    `attacked`: the weights of the tasks (sum, relative, wgd, cyclic), or the one task to attack (main, or an auxiliary
    one). `heads_sha256`: the hash of the weights of the run's heads, filled in, which distinguishes runs in records.
    """

    asks: ClassVar[Asks] = "jacobian"

    steps: Count = 25
    attacked: str = "sum"
    heads_sha256: str = ""
    heads: Mapping[str, Head] | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != "ce" or self.is_targeted():
            raise UserError(f"{self.name}: tasks have losses of their own: leave out loss, target and n_targets")

    def prepare(self, context: Context) -> Attack:
        """This attack with the heads of the evaluated run. UserError if the model is no run trained on several tasks,
        and as in `with_heads`."""
        if context.loaded.abstain:
            raise UserError(f"{self.name} has no form for models that may reject: leave out --abstain")
        heads = heads_of(context.loaded)
        if not heads:
            raise UserError(
                f"{self.name} attacks the tasks of a run that was trained on several, which {context.loaded.spec} is "
                "not: name the folder of one with --model (advbench train --method multi-task)"
            )
        return self.with_heads({name: head.to(context.data.device) for name, head in heads.items()})

    def with_heads(self, heads: Mapping[str, Head]) -> MultiTask:
        """This attack with the heads of a run, by task. UserError if `attacked` names a task without a head, or
        `heads_sha256` is set and is not that of the heads."""
        choices = (MAIN, *COMBINED, *heads)
        if self.attacked not in choices:
            raise unknown("attacked", self.attacked, choices)
        found = weights_sha256(nn.ModuleDict(heads))
        if self.heads_sha256 not in ("", found):
            raise UserError(
                f"{self.name}: the run's heads have the weights {found[:12]}..., not {self.heads_sha256[:12]}...: name "
                "the run that was meant with --model"
            )
        return replace(self, heads_sha256=found, heads=heads)

    def oracle(self, oracle: Oracle, seed: int) -> Oracle:
        return TaskOracle(oracle, self, seed)

    def passes(self, classes: int) -> tuple[int, int]:
        queries = self.queries(classes) * self.eot
        return queries * (1 + self.views()), queries * len(self.tasks())

    def attacked_heads(self) -> dict[str, Head]:
        """The heads of `tasks`, which the main task does not need."""
        every = self.heads or {}
        return {name: every[name] for name in self.tasks() if name != MAIN}

    def views(self) -> int:
        """How many views of an image are passed forward beside the image itself."""
        return sum(isinstance(head.task, Drawn) for head in self.attacked_heads().values())

    def tasks(self) -> tuple[str, ...]:
        """The tasks whose losses this attack raises: all, or the one that `attacked` names."""
        every = (MAIN, *(self.heads or {}))
        return (self.attacked,) if self.attacked in every else every

    def step(self, p: Problem, s: PGDState, a: Answer) -> PGDState:
        w = weights(self.attacked, a.value, p.reference, s.i)
        grad = (w[:, :, None, None, None] * a.gradient).sum(1)
        return super().step(p, s, replace(a, grad=grad.nan_to_num(0.0, 0.0, 0.0)))


def weights(attacked: str, now: Tensor, first: Tensor, i: Tensor) -> Tensor:
    """Weights w (S, T) after `i` (S,) steps, for losses `now` (S, T) and `first` (S, T), those of the clean images."""
    match attacked:
        case "relative":
            return 1 / first.clamp_min(MIN_CLEAN_LOSS)
        case "wgd":
            rate = now / first.clamp_min(MIN_CLEAN_LOSS)
            return rate / rate.mean(1, keepdim=True).clamp_min(1e-30)
        case "cyclic":
            tasks = torch.arange(now.shape[1], device=i.device)
            return (tasks == (i % len(tasks))[:, None]).to(now.dtype)
        case _:
            return torch.ones_like(now)


class TaskOracle(Oracle):
    """An oracle that reads the losses (S, T) of `attack.tasks()`. An item's reference is the losses of its clean image.

    The networks of `oracle` must show their features, and the heads must be on the same device. The tasks' random
    choices depend on `seed` and the sample.
    """

    def __init__(self, oracle: Oracle, attack: MultiTask, seed: int) -> None:
        super().__init__(oracle.net, oracle.search, slots=oracle.slots, random=oracle.random)
        self.attack, self.seed = attack, seed
        self.heads = attack.attacked_heads()
        self._clean: tuple[Samples, Tensor] | None = None

    def answer(
        self, attack: Attack, p: Problem, query: Tensor, asks: Asks | None = None, handicap: Tensor | None = None
    ) -> Answer:
        self.forwards += self.attack.views() * len(query) * attack.eot
        return super().answer(attack, p, query, asks, handicap)

    def reference(self, samples: Samples, row: Tensor, target: Tensor) -> Tensor:
        if self._clean is None or self._clean[0] is not samples:
            self._clean = samples, self.clean(samples.x, samples.y, samples.index)
        return self._clean[1][row]

    def clean(self, x: Callable[[Tensor], Tensor], y: Tensor, index: Tensor) -> Tensor:
        """The losses (n, T) of `net` on clean images, in passes of `slots` rows.

        x(rows): the images; y (n,): labels; `index` (n,): places in the dataset.
        """
        found = []
        for some in torch.arange(len(y), device=y.device).split(self.slots):
            rows = some[torch.arange(self.slots, device=y.device) % len(some)]  # fills the last pass
            images = x(rows)
            with torch.no_grad():
                _, values = self._losses(self.net, images, images, y[rows], index[rows])
            found.append(values[: len(some)])
        return torch.cat(found)

    def read(self, p: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
        assert p.index is not None
        return self._losses(self.search, p.region.x, query, p.y, p.index)

    def _losses(self, f: nn.Module, x: Tensor, z: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and losses (B, T) of f at z (B, C, H, W), perturbed from the clean images x."""
        drawn = sample_key(self.seed, index)
        out = answers(f, self.heads, z, drawn)  # type: ignore[arg-type]
        found = losses(out, self.heads, x, y, drawn)
        return out[MAIN].float(), torch.stack([found[name] for name in self.attack.tasks()], 1).float()


def heads_of(loaded: Loaded) -> dict[str, Head]:
    """The heads, by task, of a run trained on several tasks; empty for any other model."""
    if loaded.folder is None or loaded.file != BEST or not isinstance(loaded.net, Model):
        return {}
    return load_heads(loaded.folder, loaded.net)
