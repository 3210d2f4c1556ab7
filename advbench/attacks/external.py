"""Attacks of other libraries, as they are, or made for each batch by a user's function (model) or (model, eps).

    from functools import partial
    import torchattacks
    from adv_lib.attacks import fmn

    def pgd(model, eps):                              # --attack my_attacks:pgd
        return torchattacks.PGD(model, eps, alpha=eps / 4, steps=40)

    nearest = partial(fmn, steps=100)                 # --attack my_attacks:nearest

They run a copy of the model. Classes and objects can be named themselves, such as `torchattacks:AutoAttack`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from advbench import rng
from advbench.attacks.function import Function, is_attack
from advbench.attacks.peers import PLAIN, Peer, Task, held, peer_of, unwrapped
from advbench.checkpoint import maker_sha256
from advbench.engine.attack import Attack, Context, prepared
from advbench.engine.whole_batch import WholeBatch, copied, others_code
from advbench.errors import UserError
from advbench.registry import parameters, required

DESCRIBED_AT = (0.1, 0.2)  # two eps: settings that differ between them depend on eps
FORMS = (
    "an attack derives from advbench.engine.attack.Attack, is of torchattacks, Foolbox, ART or adversarial-library, or "
    "is a function (model, x, y, eps) -> x_adv or (model[, eps]) -> attack"
)


@dataclass(frozen=True, kw_only=True)
class External(WholeBatch):
    """`thing`: an attack of another library, a class of such, or a function that makes one for a model; `bound`:
    arguments for it that ENTRIES sets. `described`: the library, its version, the class and its settings."""

    thing: Any = prepared()
    bound: Mapping[str, Any] = field(default_factory=dict)
    classes: int = prepared()
    described: Mapping[str, Any] = field(default_factory=dict)
    told_eps: bool = True

    def prepare(self, context: Context) -> Attack:
        """This attack with its description. UserError if it cannot be made for the model or is one in another norm."""
        net, (x, _) = copied(context.loaded.net), context.data.batch(slice(0, 1))
        peer = peer_of(self.thing)
        bound = peer is not None and peer.needs_model and not isinstance(self.thing, type)
        if bound and all(peer.model_of(self.thing) is not part for part in context.loaded.net.modules()):  # type: ignore[union-attr]
            raise UserError(f"{self.name} is bound to another model: give a function (model) -> attack")
        found: list[dict[str, Any]] = []
        with rng.kept(context.seed), others_code(self.name):
            for eps in DESCRIBED_AT:
                task = Task(net, x, eps, context.norm, context.data.num_classes, context.seed)
                of, attack = self._made(task)
                norm = of.norm_of(attack)
                if norm not in (None, context.norm):
                    raise UserError(f"{self.name} is an attack in {norm}, not {context.norm}: choose --norm {norm}")
                found.append(of.settings(attack))
            told = self._takes_eps or of.knows_eps(attack)
        described = {"library": of.module, "library_version": of.version()} if of is not PLAIN else {}
        described |= {"class": name_of(attack).rpartition(":")[2], **relative(*found)}
        return replace(self, classes=context.data.num_classes, described=described, told_eps=told)

    def knows_eps(self) -> bool:
        return self.told_eps

    def points(self, net: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int) -> Any:
        task = Task(net, x, eps, norm, self.classes, seed)
        peer, attack = self._made(task)
        return peer.points(attack, task, y)

    def settings(self) -> dict[str, Any]:
        code = maker_sha256(self.thing)
        own = held(self.thing) if peer_of(self.thing) is None else {}
        return {**({} if code is None else {"code_sha256": code}), **own, **self.bound, **self.described}

    @property
    def _takes_eps(self) -> bool:
        """Whether `thing` is a function that is given eps, so that what it makes is left as it is."""
        return peer_of(self.thing) is None and ("eps" in parameters(self.thing) or len(required(self.thing)) > 1)

    def _made(self, task: Task) -> tuple[Peer, Any]:
        """The attack for `task`, and the library that it is of."""
        thing, peer = self.thing, peer_of(self.thing)
        if peer is None:
            by_position = len(required(thing)) > 1
            eps = {"eps": task.eps} if self._takes_eps and not by_position else {}
            attack = thing(*((task.net, task.eps) if by_position else (task.net,)), **eps, **self.bound)
            peer = peer_of(attack) or PLAIN
            if peer is PLAIN and (not callable(attack) or isinstance(attack, nn.Module | Attack)):
                raise UserError(f"{self.name} made a {type(attack).__name__}: {FORMS}")
        elif isinstance(thing, type):
            attack = peer.create(thing, task, self.bound)
        else:
            attack = peer.bind(thing, task)
        peer.adjust(attack, task, set_eps=not self._takes_eps)
        return peer, attack


def attack_of(name: str, thing: Any, bound: Mapping[str, Any] | None = None) -> Attack | None:
    """The attack `name` that `thing` is, or makes for each model; None if it is none of those.

    `bound`: arguments for it, if it is a class or a function.
    """
    if isinstance(thing, Attack):
        return thing
    if isinstance(thing, type) and issubclass(thing, Attack):
        return None
    if peer_of(thing) is not None or is_maker(thing):
        return External(name=name, thing=thing, bound=dict(bound or {}))
    return Function.of(name, thing, bound) if callable(thing) and is_attack(thing) else None


def is_maker(thing: Callable[..., Any]) -> bool:
    """Whether `thing` makes an attack for a model: a class or function of one or two arguments, (model[, eps])."""
    needed = required(thing) if callable(thing) else []
    return len(needed) in (1, 2) and needed[0] not in ("norm", "name")


def name_of(thing: Any) -> str:
    """The name of an attack that was not named: where its class or function is from, such as `my_attacks:pgd`."""
    defined = unwrapped(thing)
    defined = defined if hasattr(defined, "__qualname__") else type(defined)
    return f"{defined.__module__}:{defined.__qualname__}"


def relative(one: Any, other: Any) -> Any:
    """The settings of one attack, at the two eps DESCRIBED_AT. What grows with eps is written relative to it, eps
    itself and what depends on it in other ways is left out."""
    if isinstance(one, dict) and isinstance(other, dict):
        found: dict[str, Any] = {}
        for key, value in one.items():
            if key == "eps":
                continue
            again = other.get(key)
            if isinstance(value, dict | list):
                found[key] = relative(value, again)
            elif value == again:
                found[key] = value
            elif isinstance(value, float) and isinstance(again, float):
                low, high = (part / eps for part, eps in zip((value, again), DESCRIBED_AT, strict=True))
                if abs(low - high) <= 1e-6 * abs(low):
                    found[f"rel_{key}"] = float(f"{low:.9g}")
        return found
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [relative(*pair) for pair in zip(one, other, strict=True)]
    return one
