"""What an attack is, and two drivers of one attack file: `solve` here (training) and `search` (evaluation).

An attack never runs the model. It asks: its state holds a `query`, a driver answers with the model's
logits and gradient there, and `step` turns the answer into the next query. So input-only gradients,
precision, averaging over randomness, counting and the verification of hits are each written once.
What an attack needs beyond logits is its own matter: `prepare` and `oracle` in its file.

Every tensor of a problem, a state and an answer has one row an item: (sample, target class or none,
restart). No row may depend on another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from advbench.engine.losses import KL, LOSSES, kl
from advbench.errors import UserError, unknown
from advbench.threat import Region

if TYPE_CHECKING:
    from advbench.checkpoint import Loaded
    from advbench.data.dataset import Dataset
    from advbench.engine.oracle import Oracle

Asks = Literal["logits", "gradient", "jacobian"]


@dataclass
class Problem:
    """What items are to solve: the ball around x, label y (S,), target class (S,) or -1, noise key (S,), which of
    the attack's restarts they are (S,), the first where it is not given; `reference` (S, R), what the objective may
    compare with: the clean logits, or what the attack's oracle gives in their place; and the samples' places in the
    dataset, `index` (S,)."""

    region: Region
    y: Tensor
    target: Tensor
    key: Tensor
    restart: Tensor | None = None
    reference: Tensor = field(default_factory=lambda: torch.zeros(0))
    index: Tensor | None = None

    def __post_init__(self) -> None:
        if self.restart is None:
            self.restart = torch.zeros_like(self.y)
        if self.index is None:
            self.index = torch.zeros_like(self.y)
        if self.reference.dim() == 1:
            self.reference = torch.zeros(len(self.y), 0, device=self.y.device)

    @property
    def first(self) -> Tensor:
        """(S,) bool: items that are the first start of their sample and target."""
        assert self.restart is not None
        return self.restart == 0


@dataclass
class Samples:
    """What is attacked: `x(rows)` gives float32 images in [0, 1] on the device for int64 row numbers.

    labels y (n,), place in the dataset `index` (n,), `eps` (n,) float64 (infinite: look for the nearest
    adversarial point instead), clean `logits` (n, K).
    """

    x: Callable[[Tensor], Tensor]
    y: Tensor
    index: Tensor
    eps: Tensor
    logits: Tensor


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


@dataclass(frozen=True)
class Context:
    """What an attack may look at before it starts: the model in eval mode, the clean images on its device, the norm and
    the seed of the evaluation."""

    loaded: Loaded
    data: Dataset
    norm: str
    seed: int


def prepared() -> Any:
    """A field that `Attack.prepare` fills in: no setting, and no part of what a record says of the attack."""
    return field(default=None, repr=False, compare=False, metadata={"prepared": True})


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

    def prepare(self, context: Context) -> Attack:
        """This attack with what it takes from the model and the images. Raises UserError where they do not have it."""
        return self

    def oracle(self, oracle: Oracle, seed: int) -> Oracle:
        """What answers the queries: `oracle`, or one made of it that reads more than logits."""
        return oracle

    def follows_gradient(self) -> bool:
        """Whether it goes by the gradient of the model itself, which a model may hide."""
        return self.asks != "logits"

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
        """The value (S,) that is to rise and whose gradient is asked for: of the logits (S, K), or of what the attack's
        own oracle reads in their place."""
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

    def best_margin(self, s: Any) -> Tensor | None:
        """The largest margin (S,) that any query of each item had, where the state tells: below 0 if none was wrong."""
        return None

    def result(self, s: Any) -> Tensor:
        """The strongest point (S, C, H, W) that `solve` hands to training."""
        return s.query  # type: ignore[no-any-return]

    @classmethod
    def setting_names(cls) -> list[str]:
        """The fields that --set may give."""
        fields = dataclasses.fields(cls)
        return [f.name for f in fields if f.init and f.name != "name" and "prepared" not in f.metadata]

    @property
    def turn(self) -> tuple[Asks, ...]:
        """What is asked one after the other; items start and end at the bounds of a turn, all slots together."""
        return (self.asks, "logits") if self.looks else (self.asks,)

    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as plain JSON for the record."""
        found = {name: getattr(self, name) for name in self.setting_names()}
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
