"""The zoo: `build` makes an architecture, `wrap` changes its inference, `describe` and `rebuild` repeat both.

Importing this package loads no torch.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from advbench.errors import UserError, explained, unknown
from advbench.registry import KINDS, LIBRARIES, Entry, entries, find, kind_of, of_module

if TYPE_CHECKING:
    from torch import nn

    from advbench.models.base import Model


ImageSize = int | Sequence[int]
"""The side of square images, or (height, width)."""
FORMS = "torchvision:NAME, timm:NAME or package.module:callable"
"""The forms of an architecture beside the names of the zoo."""

_GIVEN = ("num_classes", "in_channels", "image_size", "net")  # arguments from the dataset or the caller, not settings


def architectures() -> dict[str, Entry]:
    """The registered architectures, by name."""
    return {name: entry for name, entry in entries("models").items() if not _is_wrapper(entry)}


def wrappers() -> dict[str, Entry]:
    """The registered wrappers, which change the inference of a network, by name."""
    return {name: entry for name, entry in entries("models").items() if _is_wrapper(entry)}


def sides(image_size: ImageSize) -> tuple[int, int]:
    """(height, width) of images of `image_size`."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def check_arch(arch: str) -> None:
    """Raise UserError unless `arch` names an architecture: one of the zoo, or of FORMS. Code from outside is imported.

    Loads torch for what is not of the zoo.
    """
    library, colon, name = arch.partition(":")
    if colon and library in LIBRARIES:
        from advbench.models.libraries import check_name

        check_name(library, name)
    elif colon:
        find("models", arch)
    elif arch in wrappers():
        raise UserError(f"{arch} is a wrapper, not an architecture: choose from {', '.join(architectures())}")
    elif arch not in architectures():
        if other := kind_of(arch):
            raise UserError(
                f"{arch} is {dict(KINDS.values())[other]} ({other}), no architecture: choose from "
                f"{', '.join(architectures())}"
            )
        if near := _in_libraries(arch):
            raise UserError(f"unknown architecture {arch!r}: write {near}, or choose from {', '.join(architectures())}")
        raise UserError(f"{unknown('architecture', arch, architectures())}, or write {of_module(arch) or FORMS}")


def _in_libraries(name: str) -> str:
    """How to name what torchvision or timm calls `name`; empty where neither does. Loads torch."""
    from advbench.models.libraries import check_name

    for library in LIBRARIES:
        with suppress(UserError, ImportError):
            check_name(library, name)
            return f"{library}:{name}"
    return ""


def build(
    arch: str, *, num_classes: int, in_channels: int, image_size: ImageSize, seed: int | None = None, **settings: Any
) -> Model:
    """A new network for images (B, in_channels, H, W) in [0, 1], in train mode.

    `arch`: a name of the zoo, or one of FORMS, whose networks are made a Model (`models/outside.py`). `image_size`: H
    if H = W, else (H, W). `seed` decides the initial weights and leaves the global random state unchanged. Without it
    the weights are drawn from the global random numbers. `settings` are the architecture's own (JSON values). Raises
    UserError for an unknown architecture or setting, or a size that the architecture does not support.
    """
    from advbench.models.outside import from_outside

    check_arch(arch)
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    settings = _checked_json(arch, settings)
    with explained(f"architecture {arch} failed"), _seeded(seed):
        if arch in architectures():
            entry = find("models", arch)
            known = settings_of(entry)
            for key in settings:
                if key not in known:
                    raise unknown(f"setting of {arch}", key, known)
            net = entry.create(**sizes, **settings)
        else:
            net = from_outside(arch, sizes, settings)
    net.arch, net.settings = arch, settings
    return net  # type: ignore[no-any-return]


def settings_of(entry: Entry) -> dict[str, Any]:
    """The settings of an architecture or wrapper, with their defaults (`Parameter.empty` for none). Imports torch."""
    maker = entry.load()
    layers = inspect.getmro(maker) if isinstance(maker, type) else (maker,)
    found: dict[str, Any] = {}
    for layer in layers:
        for name, parameter in inspect.signature(layer).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                found.setdefault(name, parameter.default)
        if layer.__module__ == "advbench.models.base":
            break
    found.update(entry.set)
    return {name: default for name, default in found.items() if name not in _GIVEN}


def wrap(net: nn.Module, name: str, *, seed: int | None = None, **settings: Any) -> Model:
    """Put the wrapper `name` around a copy of `net`. Raises UserError for an unknown wrapper or setting."""
    from advbench.models.base import Wrapper

    known = wrappers()
    if name not in known:
        raise unknown("wrapper", name, known)
    allowed = settings_of(known[name])
    for key in settings:
        if key not in allowed:
            raise unknown(f"setting of {name}", key, allowed)
    for key, default in allowed.items():
        if default is inspect.Parameter.empty and key not in settings:
            raise UserError(f"{name} needs the setting {key}: its settings are {', '.join(allowed)}")
    with explained(f"wrapper {name} failed"), _seeded(seed):
        wrapped = known[name].create(net=net, **_checked_json(name, settings))
    if not isinstance(wrapped, Wrapper):
        raise TypeError(f"{name} made a {type(wrapped).__name__}, not a Wrapper")
    wrapped.wrappers = [*getattr(net, "wrappers", []), {"name": name, "settings": settings}]
    return wrapped


def parse_wrapper(name: str, text: str) -> dict[str, Any]:
    """The settings of wrapper `name` from their short form, such as `layer1:8` for quantize's LAYER:LEVELS.

    Raises UserError for an unknown wrapper or a text that is not of the form.
    """
    known = wrappers()
    if name not in known:
        raise unknown("wrapper", name, known)
    form = str(known[name].about["form"])
    fields, parts = form.lower().split(":"), text.split(":")
    if len(fields) != len(parts) or not all(parts):
        raise UserError(f"{name}={text!r} is not of the form {form}")
    return {field: int(part) if part.isdigit() else part for field, part in zip(fields, parts, strict=True)}


def describe(net: Model) -> dict[str, Any]:
    """What `rebuild` needs to make the same network again, without its weights, as JSON values."""
    return {
        "arch": net.arch,
        "settings": net.settings,
        "num_classes": net.num_classes,
        "in_channels": net.in_channels,
        "image_size": net.image_size if isinstance(net.image_size, int) else list(net.image_size),
        "wrappers": net.wrappers,
    }


def rebuild(description: dict[str, Any], *, seed: int | None = None) -> Model:
    """The network that `describe` described, with new weights. Raises UserError as `build` and `wrap` do."""
    net = build(
        description["arch"],
        num_classes=description["num_classes"],
        in_channels=description["in_channels"],
        image_size=description["image_size"],
        seed=seed,
        **description["settings"],
    )
    for wrapper in description["wrappers"]:
        net = wrap(net, wrapper["name"], seed=seed, **wrapper["settings"])
    return net


def _is_wrapper(entry: Entry) -> bool:
    return entry.about.get("kind") == "wrapper"


def _checked_json(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(settings)
    except TypeError as error:
        raise UserError(f"settings of {name} must be numbers, texts, lists or true/false: {error}") from error
    return settings


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    from advbench import rng

    with rng.kept(seed):
        yield
