"""The attacks of torchattacks, Foolbox, ART and adversarial-library: how each is bound to a model, told eps and called.

A library is recognised by the modules that its classes and functions come from, so nothing here imports one.
"""

from __future__ import annotations

import copy
import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from advbench.errors import UserError
from advbench.registry import parameters

NORMS = {"inf": "linf", "2": "l2", "1": "l1"}


@dataclass(frozen=True)
class Task:
    """What an attack is made for: a model, which images x (B, C, H, W) tell shape and device of, and a ball."""

    net: nn.Module
    x: Tensor
    eps: float
    norm: str
    classes: int
    seed: int


class Peer:
    """One library. This base class fits any object that is called as attack(x, y) and knows its model and eps."""

    module: ClassVar[str] = ""
    package: ClassVar[str] = ""
    norms: ClassVar[Mapping[str, Any]] = {}  # how it writes them
    needs_model: ClassVar[bool] = False  # its attacks are made for one model

    def has(self, thing: Any) -> bool:
        """Whether `thing` is an attack of this library, a class of them, or derives from one."""
        kind = thing if isinstance(thing, type) else type(thing)
        return any(part.__module__.partition(".")[0] == self.module for part in kind.__mro__)

    def version(self) -> str:
        """The version that is installed."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return str(getattr(sys.modules.get(self.module), "__version__", ""))

    def create(self, kind: Any, task: Task, bound: Mapping[str, Any]) -> Any:
        """An attack of the class `kind`, with the arguments `bound`."""
        usual = {"eps": task.eps, "norm": self.norms.get(task.norm, task.norm), "n_classes": task.classes}
        known = parameters(kind)
        return kind(*self.model(task), **{key: usual[key] for key in usual if key in known} | dict(bound))

    def model(self, task: Task) -> tuple[Any, ...]:
        """The model as the library takes it, where it takes one."""
        return (task.net,) if self.needs_model else ()

    def model_of(self, attack: Any) -> Any:
        """The model for which `attack` was made, None if it was made for none."""
        return getattr(attack, "model", None)

    def bind(self, attack: Any, task: Task) -> Any:
        """A copy of `attack` that runs the model of `task`."""
        return copy.deepcopy(attack, {id(attack.model): task.net}) if self.needs_model else copy.deepcopy(attack)

    def adjust(self, attack: Any, task: Task, *, set_eps: bool) -> None:
        """Give `attack` and those that it is made of the seed and, with `set_eps`, the eps of `task`."""

    def knows_eps(self, attack: Any) -> bool:
        """Whether `attack` searches at one eps, not for the nearest adversarial example."""
        return True

    def norm_of(self, attack: Any) -> str | None:
        """The norm that `attack` bounds, None if it does not say."""
        return norm_name(getattr(attack, "norm", None))

    def points(self, attack: Any, task: Task, y: Tensor) -> Any:
        """The points (B, C, H, W) that `attack` finds for labels y (B,)."""
        return attack(task.x, y)

    def settings(self, attack: Any) -> dict[str, Any]:
        """The public settings of `attack`, as plain values."""
        return {key: self.plain(value) for key, value in vars(attack).items() if not key.startswith("_")}

    def parts(self, attack: Any) -> Iterator[Any]:
        """`attack` and all attacks that it holds, each once."""
        left, seen = [attack], dict[int, Any]()
        while left:
            one = left.pop()
            if id(one) in seen:
                continue
            seen[id(one)] = one
            if isinstance(one, list | tuple):
                left += one
            elif isinstance(one, dict):
                left += one.values()
            elif self.has(one):
                left += vars(one).values()
                yield one

    def plain(self, value: Any) -> Any:
        """`value` as JSON has it. What it cannot hold becomes a name, and an array its hash; a network, or a method of
        one, is none of the attack's settings, so that all models are attacked alike."""
        if isinstance(getattr(value, "__self__", value), nn.Module):
            return "network"
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | np.floating):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, np.integer | np.bool_):
            return value.item()
        if isinstance(value, list | tuple | set):
            return [self.plain(one) for one in value]
        if isinstance(value, dict):
            return {str(key): self.plain(one) for key, one in value.items()}
        if isinstance(value, Tensor | np.ndarray):
            return hashlib.sha256(torch.as_tensor(value).detach().cpu().numpy().tobytes()).hexdigest()
        if self.module and self.has(value) and not isinstance(value, type):
            return {"class": type(value).__name__, **self.settings(value)}
        return getattr(value, "__qualname__", type(value).__qualname__)


class TorchAttacks(Peer):
    """eps is set in the attack and those that it is made of; a step `alpha` is absolute, as everywhere in it."""

    module = package = "torchattacks"
    norms = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # noqa: RUF012
    needs_model = True

    _OURS = ("model", "model_name", "device", "attack", "supported_mode", "normalization_used", "seed", "verbose")

    def adjust(self, attack: Any, task: Task, *, set_eps: bool) -> None:
        if attack.normalization_used is not None:
            raise UserError("models take images in [0, 1] here: leave set_normalization_used away")
        for part in self.parts(attack):
            part.device = task.x.device
            if hasattr(part, "seed"):
                part.seed = task.seed
            if set_eps and hasattr(part, "eps"):
                part.eps = task.eps

    def knows_eps(self, attack: Any) -> bool:
        return any(hasattr(part, "eps") for part in self.parts(attack))

    def settings(self, attack: Any) -> dict[str, Any]:
        return {key: value for key, value in super().settings(attack).items() if key not in self._OURS}


class Foolbox(Peer):
    """Attacks are told model and eps when they are called; their points are the ones clipped to the ball."""

    module = package = "foolbox"

    def norm_of(self, attack: Any) -> str | None:
        with suppress(ValueError):  # Foolbox's own: an attack whose distance was not said
            return norm_name(getattr(getattr(attack, "distance", None), "p", None))
        return None

    def points(self, attack: Any, task: Task, y: Tensor) -> Any:
        model = sys.modules["foolbox"].PyTorchModel(task.net, bounds=(0, 1), device=task.x.device)
        return attack(model, task.x, y, epsilons=task.eps)[1]


class ART(Peer):
    """Attacks run an estimator, which is made from the model; `eps_step` keeps its ratio to eps."""

    module = "art"
    package = "adversarial-robustness-toolbox"
    norms = {"linf": math.inf, "l2": 2, "l1": 1}  # noqa: RUF012
    needs_model = True

    def create(self, kind: Any, task: Task, bound: Mapping[str, Any]) -> Any:
        norm = {"norm": self.norms.get(task.norm, task.norm)} if "norm" in parameters(kind) else {}
        return kind(*self.model(task), **norm | dict(bound))  # its eps and eps_step are scaled together

    def model(self, task: Task, loss: Any = None) -> tuple[Any, ...]:
        from importlib import import_module

        make = import_module("art.estimators.classification").PyTorchClassifier
        kind = "gpu" if task.x.device.type == "cuda" else "cpu"
        shape = tuple(task.x.shape[1:])
        loss = loss or nn.CrossEntropyLoss()
        return (make(task.net, loss, shape, task.classes, clip_values=(0.0, 1.0), device_type=kind),)

    def model_of(self, attack: Any) -> Any:
        return attack.estimator.model

    def bind(self, attack: Any, task: Task) -> Any:
        was = attack.estimator
        if type(was).__name__ != "PyTorchClassifier" or was.preprocessing_defences or _changes(was.preprocessing):
            raise UserError(f"its {type(was).__name__} changes what the model sees: give a function (model) -> attack")
        return copy.deepcopy(attack, {id(was): self.model(task, was.loss)[0]})

    def adjust(self, attack: Any, task: Task, *, set_eps: bool) -> None:
        for part in self.parts(attack):
            if hasattr(part, "verbose"):
                part.verbose = False  # no progress bars
            if not set_eps or not _number(getattr(part, "eps", None)) or "eps" not in part.attack_params:
                continue
            step = getattr(part, "eps_step", 0.0)
            ratio = step / part.eps if _number(step) and "eps_step" in part.attack_params else None
            part.set_params(eps=task.eps, **{} if ratio is None else {"eps_step": ratio * task.eps})

    def knows_eps(self, attack: Any) -> bool:
        return any("eps" in part.attack_params for part in self.parts(attack) if hasattr(part, "attack_params"))

    def points(self, attack: Any, task: Task, y: Tensor) -> Any:
        found = attack.generate(x=task.x.cpu().numpy(), y=y.cpu().numpy())
        return torch.from_numpy(np.asarray(found, dtype=np.float32))

    def settings(self, attack: Any) -> dict[str, Any]:
        names = getattr(attack, "attack_params", ())  # a part may be an estimator, which has none
        names = [name for name in names if name not in ("verbose", "summary_writer")]
        return {name: self.plain(getattr(attack, name)) for name in names if hasattr(attack, name)}


class AdvLib(Peer):
    """Functions (model, inputs, labels, ...), told eps and the norm where they have to be; most look for the nearest
    adversarial example."""

    module = "adv_lib"
    package = "adv-lib"
    norms = {"linf": math.inf, "l2": 2.0, "l1": 1.0}  # noqa: RUF012

    _EPS = ("eps", "ε")

    def has(self, thing: Any) -> bool:
        return getattr(unwrapped(thing), "__module__", "").partition(".")[0] == self.module

    def bind(self, attack: Any, task: Task) -> Any:
        return attack

    def knows_eps(self, attack: Any) -> bool:
        return any(p.default is p.empty for name, p in parameters(attack).items() if name in self._EPS)

    def norm_of(self, attack: Any) -> str | None:
        return norm_name(self.settings(attack).get("norm"))

    def points(self, attack: Any, task: Task, y: Tensor) -> Any:
        usual = {**dict.fromkeys(self._EPS, task.eps), "norm": self.norms.get(task.norm, task.norm)}
        open_ = [name for name, p in parameters(attack).items() if p.default is p.empty]
        return attack(task.net, task.x, y, **{key: usual[key] for key in usual if key in open_})

    def settings(self, attack: Any) -> dict[str, Any]:
        known = {name: p.default for name, p in parameters(attack).items() if p.default is not p.empty}
        return {name: self.plain(value) for name, value in known.items()}


PLAIN = Peer()
PEERS: tuple[Peer, ...] = (TorchAttacks(), Foolbox(), ART(), AdvLib())


def peer_of(thing: Any) -> Peer | None:
    """The library that the attack, class or function `thing` is of; None if of none of them."""
    return next((peer for peer in PEERS if peer.has(thing)), None)


def unwrapped(thing: Any) -> Any:
    """The function of a partial one; `thing` itself if it is none."""
    while isinstance(thing, partial):
        thing = thing.func
    return thing


def held(thing: Any) -> dict[str, Any]:
    """The public settings that a partial function, an object or its method holds, as plain values."""
    found: dict[str, Any] = {}
    while isinstance(thing, partial):
        found = {**{f"argument {place}": one for place, one in enumerate(thing.args)}, **thing.keywords, **found}
        thing = thing.func
    owner = getattr(thing, "__self__", thing)
    own = {} if isinstance(owner, type | ModuleType) or not hasattr(owner, "__dict__") else PLAIN.settings(owner)
    return {**own, **{name: PLAIN.plain(value) for name, value in found.items()}}


def norm_name(value: Any) -> str | None:
    """The norm as it is called here: linf for Linf, inf or infinity, l2 for 2; None for others."""
    return NORMS.get(str(value).lower().removeprefix("l").removesuffix(".0"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _changes(preprocessing: Any) -> bool:
    """Whether ART's preprocessing does anything: by default it subtracts 0 and divides by 1."""
    if preprocessing is None:
        return False
    mean, std = getattr(preprocessing, "mean", None), getattr(preprocessing, "std", None)
    return mean is None or std is None or bool(np.any(np.asarray(mean) != 0) or np.any(np.asarray(std) != 1))
