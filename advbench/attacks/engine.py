"""One attack file, two drivers: `solve` here (the inner maximisation of training) and `search` (evaluation).

An attack never runs the model. It asks: its state holds a `query`, a driver answers with the model's
logits and gradient there, and `step` turns the answer into the next query. So input-only gradients,
precision, averaging over randomness, counting and the verification of hits are each written once.

Every tensor of a problem, a state and an answer has one row an item: (sample, target class or none,
restart). No row may depend on another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from advbench.attacks.losses import KL, LOSSES, kl
from advbench.errors import UserError, unknown
from advbench.threat import Region

Asks = Literal["logits", "gradient", "jacobian"]
Reads = Literal["logits", "features", "tasks"]


@dataclass
class Problem:
    """What items are to solve: the ball around x, label y (S,), target class (S,) or -1, noise key (S,), which of
    the attack's restarts they are (S,), the first where it is not given; what the objective may compare with (S, R):
    the clean logits, or for an attack that reads features the centre of the target class, for one that reads tasks
    the losses of the clean image; and for the latter the key (S,) of what the tasks draw for the sample."""

    region: Region
    y: Tensor
    target: Tensor
    key: Tensor
    restart: Tensor | None = None
    reference: Tensor = field(default_factory=lambda: torch.zeros(0))
    drawn: Tensor | None = None

    def __post_init__(self) -> None:
        if self.restart is None:
            self.restart = torch.zeros_like(self.y)
        if self.drawn is None:
            self.drawn = torch.zeros_like(self.y)
        if self.reference.dim() == 1:
            self.reference = torch.zeros(len(self.y), 0, device=self.y.device)

    @property
    def first(self) -> Tensor:
        """(S,) bool: items that are the first start of their sample and target."""
        assert self.restart is not None
        return self.restart == 0


@dataclass
class State:
    """Where items stand: the `query` (S, C, H, W) to be answered next, and `i` (S,), the answers so far."""

    query: Tensor
    i: Tensor


@dataclass
class Answer:
    """The model at the queries: logits (S, K), `wrong` (S,), the objective's value (S,) and gradient.

    The gradient has the query's shape. For "jacobian" the value is all that the attack reads, (S, R), and the gradient
    (S, R, C, H, W), one of each.
    """

    logits: Tensor
    wrong: Tensor
    value: Tensor
    grad: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        assert self.grad is not None
        return self.grad


D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Base of attacks: fields are the settings. `steps` counts updates, `restarts` independent starts.

    `eot` passes are averaged in each answer (expectation over transformation, Athalye et al. 2018,
    1802.00420), for models whose outputs are random. `straight_through` lets gradients pass the layers declared
    non-differentiable as if they were the identity (BPDA, the same paper).
    """

    asks: ClassVar[Asks] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    version: ClassVar[int] = 1
    minimum_norm: ClassVar[bool] = False  # seeks the nearest adversarial point, not one within eps
    reads: ClassVar[Reads] = "logits"  # what of the model the objective is a function of
    looks: ClassVar[bool] = False  # after each answer with a gradient, the next query asks for logits alone

    name: str
    steps: int
    restarts: int = 1
    loss: str = "ce"
    eot: int = 1
    straight_through: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.eot) < 1:
            raise UserError(f"{self.name}: steps, restarts and eot must be at least 1")
        if self.loss not in (*LOSSES, KL):
            raise unknown("loss", self.loss, (*LOSSES, KL))

    def for_model(self, norm: str, classes: int) -> Attack:
        """This attack for a norm and a number of classes; UserError where it has no form for the norm."""
        if norm not in self.norms:
            raise UserError(f"{self.name} has no form for norm {norm}: choose from {', '.join(self.norms)}")
        if self.loss == "dlr" and classes < 3:
            return dataclasses.replace(self, loss="cw")
        return self

    def targets(self, logits: Tensor, y: Tensor) -> Tensor:
        """Target classes (n, T) of samples with clean `logits` (n, K): T items a sample and restart."""
        return torch.full((len(y), 1), -1, dtype=torch.int64, device=y.device)

    def items(self, classes: int) -> int:
        """How many items a sample has: one for each target and restart."""
        return self.restarts * self.targets(torch.zeros(1, classes), torch.zeros(1, dtype=torch.int64)).shape[1]

    def updates(self, classes: int) -> int:
        """How many updates an image that stands takes."""
        return self.steps * self.items(classes)

    def objective(self, p: Problem, read: Tensor) -> Tensor:
        """The value (S,) of what the attack `reads` whose gradient is asked for, and which is to rise."""
        return kl(read, p.reference) if self.loss == KL else LOSSES[self.loss](read, p.y, p.target)

    def start(self, p: Problem) -> State:
        """The state before any answer; must not need the model."""
        raise NotImplementedError

    def step(self, p: Problem, s: Any, a: Answer) -> State:
        """The state after the answer `a` at `s.query`; idle slots go on past `done`, so it must hold there too."""
        raise NotImplementedError

    def done(self, s: Any) -> Tensor:
        """(S,) bool: items with nothing left to ask. Every update is followed by one last look."""
        return s.i > self.steps  # type: ignore[no-any-return]

    def reached(self, s: Any) -> Tensor | None:
        """The largest margin (S,) that any query of each item had, where the state tells: below 0 if none was wrong."""
        return None

    def result(self, s: Any) -> Tensor:
        """The strongest point (S, C, H, W) that `solve` hands to training."""
        return s.query  # type: ignore[no-any-return]

    @property
    def turn(self) -> tuple[Asks, ...]:
        """What is asked one after the other; items start and end at the bounds of a turn, all slots together."""
        return (self.asks, "logits") if self.looks else (self.asks,)

    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as plain JSON for the record."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init and f.name != "name"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def members(attack: Attack | tuple[Attack, ...]) -> tuple[Attack, ...]:
    """The attacks of a set such as AutoAttack, or of a single one."""
    return attack if isinstance(attack, tuple) else (attack,)


def solve(attack: Attack, objective: Callable[[Tensor], Tensor], p: Problem) -> Tensor:
    """Points (S, C, H, W) of `p.region` where `objective`, a value (S,) for inputs (S, C, H, W), is high.

    All rows take all steps, with no synchronisation with the host; gradients are taken by the input
    only, and nothing is left in the `.grad` of any weight.
    """
    state = attack.start(p)
    for _ in range(attack.steps):
        query = state.query.detach().requires_grad_()
        with torch.enable_grad():
            value = objective(query)
            (grad,) = torch.autograd.grad(value.sum(), query)
        value = value.detach()
        state = attack.step(p, state, Answer(value[:, None], torch.zeros_like(p.y, dtype=torch.bool), value, grad))
    return attack.result(state).detach()


def surely_none(condition: Tensor) -> bool:
    """Whether no row of `condition` (S,) holds, as far as a look is free: False on CUDA, which would have to wait."""
    return condition.device.type == "cpu" and not bool(condition.any())


def rows(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the rows where `condition` (S,) holds, else `old`: itself, not a copy, where none does."""
    if new.device.type != "cpu":
        return torch.where(condition.view(-1, *[1] * (new.dim() - 1)), new, old)
    at = condition.nonzero()[:, 0]  # a look, which is cheap on CPUs, where torch.where is slow
    return old.index_copy(0, at, new.index_select(0, at)) if len(at) else old


def put(into: Any, at: Tensor, new: Any) -> None:
    """Write the rows of the dataclass `new` into the rows `at` of `into`, tensor by tensor, in place."""
    for mine, theirs in zip(tensors(into), tensors(new), strict=True):
        mine[at] = theirs


def take(state: D, at: Tensor | slice) -> D:
    """The rows `at` of a dataclass of tensors: copied, or for a slice seen."""
    return mapped(lambda value: value[at], state)


def join(states: Sequence[D]) -> D:
    """The rows of several dataclasses of tensors, one after the other."""
    columns = zip(*map(tensors, states), strict=True)
    joined = iter([torch.cat(column) for column in columns])
    return mapped(lambda _: next(joined), states[0])


def tensors(of: Any) -> list[Tensor]:
    """The tensors of a dataclass and of the dataclasses in it, in the order of the fields."""
    values = [getattr(of, f.name) for f in dataclasses.fields(of)]
    return [one for value in values for one in ([value] if isinstance(value, Tensor) else tensors(value))]


def mapped(change: Callable[[Tensor], Tensor], of: D) -> D:
    """A dataclass of tensors, each of them changed, in the order of the fields."""
    changes = {
        f.name: change(value) if isinstance(value := getattr(of, f.name), Tensor) else mapped(change, value)
        for f in dataclasses.fields(of)  # type: ignore[arg-type]
    }
    return dataclasses.replace(of, **changes)  # type: ignore[type-var]
