"""The attack protocol. Two drivers run an attack: `solve` (here, for training) and `Search` (for evaluation).

An attack never runs the model. Its state holds a `query`; the driver answers with the model's logits and gradient at
the query, and `step` turns the answer into the next query. So input-only gradients, precision, averaging over
randomness, counting of passes and verification of hits are each written once, in the drivers. An attack that needs more
than logits overrides `prepare` and `oracle`.

Every tensor of a problem, a state and an answer has one row per item: (sample, target class or none, restart). No row
may depend on another row.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from advbench.checkpoint.code import maker_sha256
from advbench.engine.losses import KL, LOSSES, kl
from advbench.errors import UserError, unknown
from advbench.recipe.fields import LARGEST, Count
from advbench.threat import Region

if TYPE_CHECKING:
    from advbench.checkpoint import Loaded
    from advbench.data.dataset import Dataset
    from advbench.engine.oracle import Oracle

Asks = Literal["logits", "gradient", "jacobian"]


@dataclass
class Problem:
    """What S items are to solve.

    `region`: the balls around the clean images x; `y` (S,): labels; `target` (S,): the target class, or -1 for none;
    `key` (S,): the key of the item's random numbers; `restart` (S,): the number of the restart, 0 if not given;
    `reference` (S, R): what the objective may compare with, the clean logits unless the attack's oracle gives something
    else; `index` (S,): the samples' places in the dataset, 0 if not given; `i` (S,): the number of answers so far, for
    objectives that change on the way.
    """

    region: Region
    y: Tensor
    target: Tensor
    key: Tensor
    restart: Tensor | None = None
    reference: Tensor = field(default_factory=lambda: torch.zeros(0))
    index: Tensor | None = None
    i: Tensor | None = None

    def __post_init__(self) -> None:
        if self.restart is None:
            self.restart = torch.zeros_like(self.y)
        if self.i is None:
            self.i = torch.zeros_like(self.y)
        if self.index is None:
            self.index = torch.zeros_like(self.y)
        if self.reference.dim() == 1:
            self.reference = torch.zeros(len(self.y), 0, device=self.y.device)

    @property
    def first(self) -> Tensor:
        """(S,) bool: items that are the first restart of their sample and target."""
        assert self.restart is not None
        return self.restart == 0


@dataclass
class Samples:
    """The n samples to attack. `x(rows)` gives the float32 images in [0, 1], on the device, of int64 row numbers.

    `y` (n,): labels; `index` (n,): places in the dataset; `eps` (n,) float64, infinite to search for the nearest
    adversarial example; `logits` (n, K): the clean logits.
    """

    x: Callable[[Tensor], Tensor]
    y: Tensor
    index: Tensor
    eps: Tensor
    logits: Tensor


@dataclass
class State:
    """The progress of S items: `query` (S, C, H, W) is answered next; `i` (S,) is the number of answers so far."""

    query: Tensor
    i: Tensor


@dataclass
class Answer:
    """The model's answer to the queries.

    `logits` (S, K); `wrong` (S,) bool: misclassified; `value` (S,): the objective; `grad` (S, C, H, W): its gradient,
    None for "logits". For "jacobian", `value` (S, R) holds the R outputs that the attack reads (the logits by default)
    and `grad` (S, R, C, H, W) the gradient of each.
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
    """What `Attack.prepare` may read: the model in eval mode, the clean images on the model's device, the norm and the
    seed of the evaluation."""

    loaded: Loaded
    data: Dataset
    norm: str
    seed: int


def prepared() -> Any:
    """A field that `Attack.prepare` fills in. It is not a setting and does not appear in records."""
    return field(default=None, repr=False, compare=False, metadata={"prepared": True})


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Base class of attacks. The fields are the settings, whose meaning the docstring gives in this form:

    - `name`: what records call it.
    - `steps`: number of updates.
    - `restarts`: number of independent starts.
    - `loss`: what it makes large: ce, cw (the margin), dlr, or kl (the divergence from the clean logits).
    - `eot`: number of passes averaged in each answer (expectation over transformation, Athalye et al. 2018,
      1802.00420), for models with random outputs.
    - `straight_through`: gradients pass the layers declared non-differentiable as if those were the identity (BPDA, the
      same paper).

    UserError if `steps`, `restarts` or `eot` is below 1, or the loss is unknown or none of `losses`.
    """

    asks: ClassVar[Asks] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    losses: ClassVar[tuple[str, ...]] = (*LOSSES, KL)
    version: ClassVar[int] = 1
    minimum_norm: ClassVar[bool] = False  # searches for the nearest adversarial example, not for one within eps
    checks_steps: ClassVar[bool] = False  # each query with a gradient is followed by one for logits alone
    main_count: ClassVar[str] = "steps"  # the setting that `for_budget` chooses

    name: str
    steps: Count
    restarts: Count = 1
    loss: str = "ce"
    eot: Count = 1
    straight_through: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.eot) < 1:
            raise UserError(f"{self.name}: steps, restarts and eot must be at least 1")
        if self.loss not in (*LOSSES, KL):
            raise unknown("loss", self.loss, (*LOSSES, KL))
        if self.loss not in self.losses:
            raise UserError(f"{self.name} has no form for the loss {self.loss}: choose from {', '.join(self.losses)}")

    def for_model(self, norm: str, classes: int) -> Attack:
        """This attack for a norm and a number of classes. UserError if it has no form for them."""
        if norm not in self.norms:
            raise UserError(f"{self.name} has no form for norm {norm}: choose from {', '.join(self.norms)}")
        if self.loss == "dlr" and classes < (4 if self.is_targeted() else 3):  # so many logits are in its formula
            return dataclasses.replace(self, loss="cw")
        return self

    def prepare(self, context: Context) -> Attack:
        """This attack with its `prepared` fields read from the model and the images. UserError if they lack them."""
        return self

    def oracle(self, oracle: Oracle, seed: int) -> Oracle:
        """The oracle that answers this attack's queries: `oracle`, or one built on it that reads more than logits."""
        return oracle

    def is_targeted(self) -> bool:
        """Whether the loss is towards chosen classes."""
        return False

    def follows_gradient(self) -> bool:
        """Whether it uses the gradient of the evaluated model, which gradient masking could hide."""
        return self.asks != "logits"

    def needs_small_logits(self) -> bool:
        """Whether it climbs a loss whose gradient vanishes where logits are large."""
        return self.loss in ("ce", KL)

    def target_classes(self, logits: Tensor, y: Tensor) -> Tensor:
        """Target classes (n, T) for clean `logits` (n, K) and labels y (n,): each sample has T items per restart."""
        return torch.full((len(y), 1), -1, dtype=torch.int64, device=y.device)

    def target_classes_of(self, samples: Samples, oracle: Oracle, norm: str) -> Tensor:
        """The target classes (n, T) of the samples: those of `target_classes`, unless the attack has others for each
        sample, for which it may ask the oracle."""
        return self.target_classes(samples.logits, samples.y)

    def items(self, classes: int) -> int:
        """The number of items per sample: one for each target and restart."""
        return self.restarts * self.target_classes(torch.zeros(1, classes), torch.zeros(1, dtype=torch.int64)).shape[1]

    def updates(self, classes: int) -> int:
        """The number of updates on a sample that stands to the end."""
        return self.steps * self.items(classes)

    def queries(self, classes: int) -> int:
        """The number of queries on a sample that stands to the end, at one eps; each asks for what `turn` says."""
        return self.updates(classes) + self.items(classes)

    def passes(self, classes: int) -> tuple[int, int]:
        """Forward and backward passes on a sample that stands to the end, at one eps."""
        queries = self.queries(classes) * self.eot
        backwards = {"logits": 0, "gradient": queries, "jacobian": queries * classes}[self.asks]
        return queries * len(self.turn), backwards

    def with_count(self, count: int) -> Attack:
        """This attack with another `main_count`. UserError if that does not decide how many passes it makes."""
        if self.steps == 1:
            raise UserError(f"{self.name} is a single step, whose passes are what they are: leave out --attack-budget")
        return dataclasses.replace(self, **{self.main_count: count})  # type: ignore[arg-type]

    def for_budget(self, passes: int, classes: int) -> Attack:
        """This attack with the largest `main_count` with which it makes at most `passes` forward and backward passes on
        a sample. They must suffice for a count of 1."""
        counts = range(1, min(passes, LARGEST) + 1)
        fitting = bisect_right(counts, passes, key=lambda count: sum(self.with_count(count).passes(classes)))
        return self.with_count(fitting)

    def objective(self, p: Problem, read: Tensor) -> Tensor:
        """The value (S,) to maximise, a function of `read`: the logits (S, K), or what the attack's own oracle reads
        instead."""
        return kl(read, p.reference) if self.loss == KL else LOSSES[self.loss](read, p.y, p.target)

    def start(self, p: Problem) -> State:
        """The state before the first answer. It must not need the model."""
        raise NotImplementedError

    def step(self, p: Problem, s: Any, a: Answer) -> State:
        """The state after answer `a` to `s.query`. Idle slots keep stepping, so it must also work after `done`."""
        raise NotImplementedError

    def done(self, s: Any) -> Tensor:
        """(S,) bool: items without further queries. The point after the last update is queried too."""
        return s.i > self.steps  # type: ignore[no-any-return]

    @property
    def few_go_on(self) -> bool:
        """Whether most items end long before their last query though they stand."""
        return False

    def result(self, s: Any) -> Tensor:
        """The strongest points (S, C, H, W), which `solve` returns to training."""
        return s.query  # type: ignore[no-any-return]

    @classmethod
    def setting_names(cls) -> list[str]:
        """The names of the fields that --set can change."""
        fields = dataclasses.fields(cls)
        return [f.name for f in fields if f.init and f.name != "name" and "prepared" not in f.metadata]

    @property
    def turn(self) -> tuple[Asks, ...]:
        """What the queries of one turn ask for, in order. Items start and end only between turns."""
        return (self.asks, "logits") if self.checks_steps else (self.asks,)

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON, for the record; of a class from outside, the hash of its source too."""
        settings = {name: getattr(self, name) for name in self.setting_names()}
        if (code := maker_sha256(type(self))) is not None:
            settings["code_sha256"] = code
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def members(attack: Attack | tuple[Attack, ...]) -> tuple[Attack, ...]:
    """The attacks of a set such as AutoAttack; a single attack gives a tuple of one."""
    return attack if isinstance(attack, tuple) else (attack,)


def solve(attack: Attack, objective: Callable[[Tensor], Tensor], p: Problem) -> Tensor:
    """Maximise `objective`, which maps inputs (S, C, H, W) to values (S,), over `p.region`; points (S, C, H, W).

    All rows take all steps, without synchronising with the host. Gradients are taken with respect to the input only:
    the `.grad` of the weights does not change.
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
