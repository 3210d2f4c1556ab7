"""Networks from outside the zoo as a `Model`: of torchvision and timm, and any nn.Module that a callable returns."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from advbench import rng
from advbench.errors import UserError, unknown
from advbench.models import ImageSize
from advbench.models.adapted import of_two, reading
from advbench.models.base import Model, layers_of, statistics
from advbench.models.libraries import untrained
from advbench.models.normalized import normalises
from advbench.registry import LIBRARIES, find, parameters

_OWN = ("normalize", "features", "maps")  # settings of Outside; all others go to what makes the network


class Outside(Model):
    """A copy of `net`, which maps images (B, C, H, W) to logits, between `normalise` and the logits (B, K) of a Model.

    `features`, `maps`: names of the layers (as in `net.named_modules()`) whose outputs are the features, flattened, and
    the feature maps, which must be 4-D. Without `features` they are what the last linear layer reads, if its output is
    the logits; that layer is the head. `repeat`: the copies of a grey image's channel that the net receives.

    The answer of `net` may be a tensor, or a tuple, mapping or object with the logits; one logit z means two classes,
    with the logits 0 and z. Raises UserError for an unknown layer.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_classes: int,
        in_channels: int,
        image_size: ImageSize,
        normalize: str | Sequence[Sequence[float]] | None = None,
        features: str = "",
        maps: str = "",
        repeat: int = 1,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        del self.act  # no layer of this network
        if normalize is not None:
            self.mean, self.std = statistics(normalize, in_channels * repeat)
            self._normalizes = True
        self.net = copy.deepcopy(net).float()  # a maker may return one and the same module again
        features, maps = str(features), str(maps)  # a recipe has the name of a layer such as 0 as a number
        for layer in (features, maps):
            if layer and layer not in (layers := layers_of(net)):
                raise unknown("layer", str(layer), layers)
        self.repeat = repeat
        self._layers = {"features": features, "maps": maps}
        self._found: tuple[str, int] | None = None
        if any(map(is_lazy, self.net.parameters())):
            with _trying(self.net):
                self(torch.zeros(1, *self.shape))

    def normalise(self, x: Tensor) -> Tensor:
        """What the net reads: x with its channel repeated, normalised. Always a tensor of its own."""
        x = x.expand(-1, self.repeat, -1, -1) if self.repeat > 1 else x
        return super().normalise(x) if self._normalizes else x.clone()  # the net may change its input in place

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_of(self.net(self.normalise(x)))

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen, logits = self._pass(x)
        return seen["features"], logits

    def features(self, x: Tensor) -> Tensor:
        """The features (B, feature_dim) of images x. Raises UserError where there are none."""
        return self._pass(x)[0]["features"]

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.has_maps:
            raise UserError(f"{self.arch} has no feature maps: set model.maps=LAYER, a layer whose output they are")
        seen, _ = self._pass(x)
        maps = seen["maps"]
        if not isinstance(maps, Tensor) or maps.dim() != 4:
            kind = f"{maps.dim()}-D outputs" if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
            raise UserError(f"model.maps: {self._layers['maps']} gives {kind}, not 4-D maps")
        return maps, seen["features"]

    @property
    def has_maps(self) -> bool:
        return bool(self._layers["maps"])

    @property
    def has_features(self) -> bool:
        return self.feature_dim > 0

    @property
    def has_head(self) -> bool:
        """Whether the logits are a function of the features alone, by the last linear layer."""
        return bool(self._examined()[0])

    @property
    def feature_dim(self) -> int:  # type: ignore[override]
        """D; 0 without features."""
        return self._examined()[1]

    def head(self, z: Tensor) -> Tensor:
        """Logits (B, K) of features z (B, D). Raises UserError where another layer than the head was named."""
        if not self.has_head:
            raise UserError(f"{self.arch} does not compute its logits by a linear layer from its features")
        return self.logits_of(self.net.get_submodule(self._examined()[0])(z))

    def _pass(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The features and maps of one pass, by these words, and the logits."""
        if not self.has_features:
            raise UserError(
                f"{self.arch} does not end in a linear layer whose output is the logits: "
                "set model.features=LAYER, the layer whose output are the features"
            )
        seen: dict[str, Tensor] = {}
        head = self._examined()[0]
        with ExitStack() as held:
            for what, name in self._layers.items():
                if name:
                    layer = self.net.get_submodule(name)
                    handle = layer.register_forward_hook(lambda _m, _x, out, what=what: seen.update({what: out}))  # type: ignore[misc]
                    held.callback(handle.remove)
            if not self._layers["features"]:
                layer = self.net.get_submodule(head)
                handle = layer.register_forward_pre_hook(lambda _m, args: seen.update(features=args[0]))
                held.callback(handle.remove)
            logits = self.forward(x)  # not self(x), which may be compiled without these hooks
        return {**seen, "features": seen["features"].flatten(1)}, logits

    def _examined(self) -> tuple[str, int]:
        """The name of the head, "" without one, and the number of features: by one pass of random images."""
        if self._found is None:
            self._found = self._examine()
        return self._found

    def _examine(self) -> tuple[str, int]:
        name = self._layers["features"]
        linear = {name: layer for name, layer in self.net.named_modules() if isinstance(layer, nn.Linear)}
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
        named: list[Any] = []
        with ExitStack() as held, _trying(self.net):
            for key, layer in linear.items():

                def keep(_layer: nn.Module, args: Any, out: Any, key: str = key) -> None:
                    calls.setdefault(key, []).append((args[0].clone(), out.clone()))

                held.callback(layer.register_forward_hook(keep).remove)
            if name:
                hook = self.net.get_submodule(name).register_forward_hook(lambda _m, _x, out: named.append(out))
                held.callback(hook.remove)
            device = next((value.device for value in self.net.parameters()), torch.device("cpu"))
            logits = self.forward(torch.rand(3, *self.shape).to(device))
        ends = []
        for key, seen in calls.items():
            out = self._as_logits(seen[0][1])
            if len(seen) == 1 and seen[0][0].dim() == 2 and out is not None and torch.equal(out, logits):
                ends.append((key, seen[0][0]))
        head, features = ends[-1] if ends else ("", None)
        if name:
            if not named or not isinstance(named[-1], Tensor) or len(named[-1]) != 3:
                raise UserError(f"model.features: {name} gives no tensor (B, ...)")
            same = features is not None and torch.equal(features, named[-1].flatten(1))
            head, features = head if same else "", named[-1].flatten(1)
        return head, 0 if features is None else features.shape[1]

    def logits_of(self, answer: Any) -> Tensor:
        """The logits (B, K) in what the net returned. Raises UserError where there are none."""
        read = None if isinstance(answer, Tensor) else reading(answer, self.num_classes)
        found = read.pick(answer) if read is not None and read.pick is not None else answer
        logits = self._as_logits(found)
        if logits is None:
            given = tuple(found.shape) if isinstance(found, Tensor) else type(answer).__name__
            raise UserError(
                f"{self.arch} returns {given}, not logits (B, {self.num_classes}): the images have that many classes"
            )
        return logits

    def _as_logits(self, answer: Any) -> Tensor | None:
        """`answer` as logits (B, K); None if it is none."""
        if isinstance(answer, Tensor) and self.num_classes == 2 and answer.shape[1:] in ((), (1,)):
            return of_two(answer)
        fits = isinstance(answer, Tensor) and answer.dim() == 2 and answer.shape[1] == self.num_classes
        return answer if fits else None


def stored(net: nn.Module) -> nn.Module:
    """The module whose state dict a weights file of `net` holds: a network from outside keeps the names that it has."""
    return net.net if isinstance(net, Outside) else net


def from_outside(arch: str, sizes: Mapping[str, Any], settings: Mapping[str, Any]) -> Model:
    """The network of torchvision, timm or code from outside that `arch` names, as a Model.

    `sizes`: num_classes, in_channels and image_size. A callable receives those that it has parameters for, and the
    settings but Outside's own; a class derived from Model, or a function that takes any, receives all. A network itself
    is copied. Raises UserError for anything but an nn.Module, and whatever the maker raises.
    """
    library, _, name = arch.partition(":")
    own = {key: value for key, value in settings.items() if key in _OWN}
    others = {key: value for key, value in settings.items() if key not in _OWN}
    if library in LIBRARIES:
        if sizes["in_channels"] not in (1, 3):
            raise UserError(f"{arch} takes images of 3 channels, or grey ones, not of {sizes['in_channels']}")
        net = untrained(library, name, num_classes=sizes["num_classes"], **others)
        return Outside(net, **sizes, **own, repeat=3 // sizes["in_channels"])
    entry = find("models", arch)
    maker: Any = entry.load()
    if isinstance(maker, nn.Module) and not others:
        made: Any = copy.deepcopy(maker)
        return made if isinstance(made, Model) and not own else _outside(arch, made, sizes, own)
    known = parameters(maker)
    given = {key: value for key, value in sizes.items() if key in known}
    takes_any = any(one.kind is Parameter.VAR_KEYWORD for one in known.values())
    is_class = isinstance(maker, type)
    ours = (is_class and issubclass(maker, Model)) or (takes_any and not (given or is_class))
    if ours:
        given, others = dict(sizes) if takes_any else given, dict(settings)
    net = entry.create(**given, **others)
    if isinstance(net, Model) and (ours or not own):
        return net
    return _outside(arch, net, sizes, own)


def _outside(arch: str, net: Any, sizes: Mapping[str, Any], own: Mapping[str, Any]) -> Outside:
    if not isinstance(net, nn.Module):
        raise UserError(f"{arch} made a {type(net).__name__}: an architecture makes an nn.Module")
    if "normalize" in own and normalises(net):
        raise UserError(f"{arch} normalises its images itself: leave out --mean, --std and model.normalize")
    return Outside(net, **sizes, **own)


@contextmanager
def _trying(net: nn.Module) -> Iterator[None]:
    """Inside, `net` is in eval mode and computes no gradient; its modes and all random states are restored."""
    modes = [(module, module.training) for module in net.modules()]
    with rng.kept(0), torch.no_grad():
        try:
            net.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
