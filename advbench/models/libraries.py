"""Networks made by other code: torchvision, timm, and any Python callable."""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advbench.errors import Untrusted, UserError, one_line, unknown
from advbench.models.base import STATISTICS
from advbench.models.black_box import black_box, is_predictor
from advbench.models.normalized import Normalized
from advbench.models.pickles import guarded
from advbench.registry import outside, parameters

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_name(library: str, name: str) -> None:
    """Raise UserError unless `library`, torchvision or timm, has the classifier `name` and is installed."""
    if library == "torchvision":
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            raise unknown("torchvision model", name, known)
        return
    timm = _timm()
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UserError(f"unknown timm model {name!r}: {hint}timm.list_models() names all")


def untrained(library: str, name: str, **settings: Any) -> nn.Module:
    """A network of `library`, torchvision or timm, with random weights, which takes images of 3 channels.

    `settings` (num_classes, ...) go to the library, which raises what it likes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constructors warn about changed defaults
        if library == "timm":
            return _timm().create_model(name, pretrained=False, **settings)  # type: ignore[no-any-return]
        from torchvision import models

        return models.get_model(name, weights=None, **settings)  # type: ignore[no-any-return]


def from_torchvision(name: str) -> tuple[nn.Module, int, list[str]]:
    """(network, classes, notes) for `NAME[:WEIGHTS]`: with the default weights, those named, or `random` ones.

    The network includes its normalisation. ImageNet models expect images larger than 32x32. Raises UserError for an
    unknown name, and if the weights cannot be downloaded.
    """
    from torchvision import models

    name, _, which = name.partition(":")
    check_name("torchvision", name)
    enum = models.get_model_weights(name)
    if which and which != "random" and which not in enum.__members__:
        raise unknown(f"weights of torchvision:{name}", which, ["random", *enum.__members__])
    weights = None if which == "random" else enum[which] if which else enum.DEFAULT
    try:
        with warnings.catch_warnings(), guarded():
            warnings.simplefilter("ignore")  # constructors warn about changed defaults
            net = models.get_model(name, weights=weights)
    except Untrusted:
        raise
    except Exception as error:  # the download fails in many ways
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        file = weights.url.rpartition("/")[2] if weights is not None else ""
        raise UserError(
            f"cannot download torchvision:{name} ({one_line(error)}): to load it offline place {file} in {folder}, "
            f"or write torchvision:{name}:random"
        ) from error
    transform = weights.transforms() if weights is not None else None
    mean = getattr(transform, "mean", STATISTICS["imagenet"][0])
    std = getattr(transform, "std", STATISTICS["imagenet"][1])
    notes = [f"torchvision:{name} has random weights"] if weights is None else []
    return Normalized(net, mean, std), 1000, notes


def from_timm(name: str) -> tuple[nn.Module, int, list[str]]:
    """(network, classes, notes) for `NAME[:random]`: with timm's weights, or random ones.

    Raises UserError without timm, for an unknown name, and if the weights cannot be downloaded.
    """
    random = name.endswith(":random")
    name = name.removesuffix(":random")
    check_name("timm", name)
    timm = _timm()
    try:
        with guarded():
            net = timm.create_model(name, pretrained=not random)
    except Untrusted:
        raise
    except Exception as error:  # the download fails in many ways
        raise UserError(
            f"cannot download timm:{name} ({one_line(error)}): save its state dict to a file and evaluate that with "
            f"--arch package.module:callable, or write timm:{name}:random"
        ) from error
    settings = timm.data.resolve_model_data_config(net)
    notes = [f"timm:{name} has random weights"] if random else []
    return Normalized(net, settings["mean"], settings["std"]), int(net.num_classes), notes


def _timm() -> Any:
    """The package timm. Raises UserError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("timm")
    except ImportError as error:
        raise UserError("timm: models need the package timm: pip install timm") from error


def call(spec: str, num_classes: int | None, *, known: bool = True, class_names: Sequence[str] = ()) -> nn.Module:
    """The module that `package.module:name` names or returns.

    A class, or a function that needs no argument but num_classes, is called, with num_classes if it has that parameter,
    unless that has a default and is not `known` (there may be more classes). The name may also be a module, a function
    of a batch (one required argument of another name), or a predictor, and what is called may return one of these (see
    `black_box`). Raises UserError as `registry.outside` does, if the code fails, and for anything else.
    """
    entry = outside("model", spec)
    named = entry.load()
    if isinstance(named, nn.Module) or is_predictor(named) or takes_a_batch(named, entry.set):
        made = named
    else:
        parameter = parameters(named).get("num_classes")
        if parameter is not None and num_classes is None and parameter.default is inspect.Parameter.empty:
            raise UserError(f"{spec} needs num_classes: name the --dataset")
        wanted = parameter is not None and (known or parameter.default is inspect.Parameter.empty)
        given = {"num_classes": num_classes} if wanted and num_classes is not None else {}
        made = entry.create(**given)
    return black_box(made, num_classes, spec, class_names)


def takes_a_batch(named: Any, bound: Mapping[str, Any]) -> bool:
    """Whether `named` is a function of images alone: it requires one argument that is neither bound nor num_classes."""
    if isinstance(named, type):
        return False
    needed = [
        p for p in parameters(named).values() if p.default is p.empty and p.kind not in _ANY and p.name not in bound
    ]
    return len(needed) == 1 and needed[0].kind is not inspect.Parameter.KEYWORD_ONLY and needed[0].name != "num_classes"
