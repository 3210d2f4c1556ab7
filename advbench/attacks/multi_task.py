"""An attack on the tasks of a multi-task run: Ghamizi et al., AAAI 2022, arXiv:2110.15053. Read in code.

PGD on the losses L_t of the main task and of the auxiliary ones at x_k, along sum_t w_t grad L_t(x_k), by `attacked`:

sum       w_t = 1
relative  w_t = 1 / L_t(x_0), x_0 the clean image
wgd       w_t = r_t / mean_t r_t,  r_t = L_t(x_k) / L_t(x_0): the paper's definition 5, weighted gradient descent
cyclic    one task at each step in turn, the main one first

or one task alone: main, or an auxiliary one by its name. A subject of study, not a measure: a point counts when the
answer to the main task is wrong, and raising all losses raises that one less (`advbench analyze vulnerability` shows by
how much, and the errors of the other tasks). What is drawn for a task, such as a turn, follows from the sample alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advbench.attacks.engine import Answer, Asks, Attack, Problem, Reads
from advbench.attacks.oracle import Oracle
from advbench.attacks.pgd import PGD, PGDState
from advbench.checkpoint import BEST, Loaded, load_heads, weights_sha256
from advbench.errors import UserError, unknown
from advbench.models.base import Model
from advbench.models.tasks import MAIN, Drawn, Head, answers, losses

ENTRIES: dict[str, dict[str, Any]] = {
    "multi-task": {
        "make": "MultiTask",
        "set": {"name": "multi-task"},
        "members": ["pgd"],
        "summary": "PGD on the tasks of a run, all or one (Ghamizi et al. 2022): a subject of study; "
        "autoattack gives the main task's worst case",
    },
}
COMBINED = ("sum", "relative", "wgd", "cyclic")
LEAST = 1e-8  # a clean loss, where losses are divided by it


@dataclass(frozen=True, kw_only=True)
class MultiTask(PGD):
    """As PGD, but for the losses, and that there is no target. `heads_sha256` is the hash of the weights of the run's
    heads, which `tasked` finds."""

    asks: ClassVar[Asks] = "jacobian"
    reads: ClassVar[Reads] = "tasks"

    steps: int = 25
    attacked: str = "sum"
    heads_sha256: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != "ce" or self.n_targets or self.target is not None:
            raise UserError(f"{self.name}: tasks have losses of their own: leave out loss, target and n_targets")

    def raised(self, heads: Mapping[str, Head]) -> tuple[str, ...]:
        """The tasks whose losses this attack reads, of those that there are: all, or the one named."""
        every = (MAIN, *heads)
        return (self.attacked,) if self.attacked in every else every

    def step(self, p: Problem, s: PGDState, a: Answer) -> PGDState:
        w = weights(self.attacked, a.value, p.reference, s.i)
        grad = (w[:, :, None, None, None] * a.gradient).sum(1)
        return super().step(p, s, replace(a, grad=grad.nan_to_num(0.0, 0.0, 0.0)))


def weights(attacked: str, now: Tensor, first: Tensor, i: Tensor) -> Tensor:
    """w (S, T) for losses `now` and those of the clean images, `first` (S, T), after `i` (S,) steps."""
    match attacked:
        case "relative":
            return 1 / first.clamp_min(LEAST)
        case "wgd":
            rate = now / first.clamp_min(LEAST)
            return rate / rate.mean(1, keepdim=True).clamp_min(1e-30)
        case "cyclic":
            tasks = torch.arange(now.shape[1], device=i.device)
            return (tasks == (i % len(tasks))[:, None]).to(now.dtype)
        case _:
            return torch.ones_like(now)


class TaskOracle(Oracle):
    """As `oracle`, but that it reads the losses (S, T) of the tasks which the attack raises; `heads` are on the device
    of its nets, which show their features."""

    def __init__(self, oracle: Oracle, heads: Mapping[str, Head]) -> None:
        super().__init__(oracle.net, oracle.search, slots=oracle.slots, random=oracle.random)
        self.heads, self.crew = heads, oracle.crew

    def answer(self, attack: Attack, p: Problem, query: Tensor, asks: Asks | None = None) -> Answer:
        views = sum(isinstance(head.task, Drawn) for head in self._heads(attack).values())
        self.forwards += views * len(query) * attack.eot
        return super().answer(attack, p, query, asks)

    def clean(self, attack: Attack, x: Callable[[Tensor], Tensor], y: Tensor, drawn: Tensor) -> Tensor:
        """The losses (n, T) of the clean images x(rows) of classes y (n,), by `net` in passes of `slots` rows; tasks
        draw by the keys `drawn` (n,)."""
        found = []
        for some in torch.arange(len(y), device=y.device).split(self.slots):
            rows = some[torch.arange(self.slots, device=y.device) % len(some)]  # what is short is filled with its own
            images = x(rows)
            with torch.no_grad():
                values, _ = self._losses(self.net, attack, images, images, y[rows], drawn[rows])
            found.append(values[: len(some)])
        return torch.cat(found)

    def _read(self, attack: Attack, p: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
        assert p.drawn is not None
        return self._losses(self.search, attack, p.region.x, query, p.y, p.drawn)

    def _losses(
        self, f: nn.Module, attack: Attack, x: Tensor, z: Tensor, y: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses (B, T) and logits (B, K) of f at z, perturbations of the clean x."""
        assert isinstance(attack, MultiTask)
        heads = self._heads(attack)
        out = answers(f, heads, z, drawn)  # type: ignore[arg-type]
        found = losses(out, heads, x, y, drawn)
        return torch.stack([found[name] for name in attack.raised(self.heads)], 1), out[MAIN]

    def _heads(self, attack: Attack) -> dict[str, Head]:
        """Those whose answers the attack needs."""
        assert isinstance(attack, MultiTask)
        return {name: self.heads[name] for name in attack.raised(self.heads) if name != MAIN}


def heads_for(attacks: Sequence[Attack], loaded: Loaded) -> dict[str, Head]:
    """The heads of the run that is attacked, by task, where one of `attacks` is on tasks, else none. Raises UserError
    when the model is no run that was trained on several."""
    asked = [attack.name for attack in attacks if attack.reads == "tasks"]
    if not asked:
        return {}
    found: dict[str, Head] = {}
    if loaded.folder is not None and loaded.file == BEST and isinstance(loaded.net, Model):
        found = load_heads(loaded.folder, loaded.net)
    if not found:
        raise UserError(
            f"{asked[0]} attacks the tasks of a run that was trained on several, which {loaded.spec} is not: name the "
            "folder of one with --model (advbench train --method multi-task)"
        )
    return found


def tasked(attack: Attack, heads: Mapping[str, Head]) -> Attack:
    """`attack`, or for one on tasks one that knows the heads' weights by their hash, so that a record tells two runs
    apart. Raises UserError for a task that the run does not have, and for other heads than the attack names."""
    if not isinstance(attack, MultiTask):
        return attack
    choices = (MAIN, *COMBINED, *heads)
    if attack.attacked not in choices:
        raise unknown("attacked", attack.attacked, choices)
    found = weights_sha256(nn.ModuleDict(heads))
    if attack.heads_sha256 not in ("", found):
        raise UserError(
            f"{attack.name}: the run's heads have the weights {found[:12]}..., not {attack.heads_sha256[:12]}...: name "
            "the run that was meant with --model"
        )
    return replace(attack, heads_sha256=found)
