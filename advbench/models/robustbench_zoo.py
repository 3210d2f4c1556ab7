"""RobustBench's models: listing them, by reading its source without importing it, and loading one.

Croce et al. 2021 (arXiv:2010.09670). Weights are read from a local file, or downloaded from where RobustBench keeps
them.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from advbench.errors import Untrusted, UserError, one_line

if TYPE_CHECKING:
    from torch import nn

# For each variable in RobustBench's source: its threat model and our norm (None: common corruptions).
_THREATS = {"linf": ("Linf", "linf"), "l2": ("L2", "l2"), "common_corruptions": ("corruptions", None)}
_DATASETS = ("cifar10", "cifar100", "imagenet")
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@dataclass(frozen=True)
class ZooModel:
    """One of RobustBench's models. `files`: its weight files, each with its Google Drive id or None."""

    dataset: str
    threat: str
    name: str
    norm: str | None
    files: tuple[tuple[str, str | None], ...]

    @property
    def spec(self) -> str:
        return f"robustbench:{self.dataset}/{self.threat}/{self.name}"

    @property
    def folder(self) -> Path:
        """The folder in which its weight files are looked for, and to which they are downloaded."""
        return models_folder() / "robustbench" / self.dataset / self.threat


def models_folder() -> Path:
    """The folder of downloaded weights: `models` in the folder ADVBENCH_DATA, or in the user's cache folder."""
    chosen = os.environ.get("ADVBENCH_DATA")
    return (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("advbench")) / "models"


@cache
def zoo() -> tuple[ZooModel, ...]:
    """All models of the installed RobustBench. Imports neither RobustBench nor torch. Raises UserError without it."""
    package = importlib.util.find_spec("robustbench")
    if package is None or package.origin is None:
        raise UserError("robustbench is not installed: pip install robustbench")
    folder = Path(package.origin).parent / "model_zoo"
    found = []
    for dataset in _DATASETS:
        tree = ast.parse((folder / f"{dataset}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                threat = _THREATS.get(node.targets[0].id)
                if threat is not None and isinstance(node.value, ast.Call):
                    for name, ids in _pairs(node.value):
                        found.append(ZooModel(dataset, threat[0], name, threat[1], _files(name, ids)))
    return tuple(found)


def choose(text: str, dataset: str | None = None, norm: str | None = None) -> tuple[ZooModel, list[str]]:
    """The model that NAME, DATASET/NAME or DATASET/THREAT/NAME means, and a note if several models have that name.

    Of several models with one name, those for `dataset` and `norm` come first, then CIFAR-10 before CIFAR-100 before
    ImageNet, and Linf before L2 before corruptions. Raises UserError if no model fits.
    """
    *path, name = text.split("/")
    if len(path) > 2:
        raise UserError(f"robustbench:{text} is not of the form robustbench:[DATASET/[THREAT/]]NAME")
    same = [model for model in zoo() if model.name.lower() == name.lower()]
    if not same:
        near = difflib.get_close_matches(name, {model.name for model in zoo()}, n=5, cutoff=0.3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UserError(f"unknown robustbench model {name!r}: {hint}advbench list models names all {len(zoo())}")
    given = [m for m in same if [m.dataset, m.threat][: len(path)] == path]
    if not given:
        raise UserError(f"no robustbench:{text}: choose from {', '.join(model.spec for model in same)}")
    fitting = [model for model in given if dataset not in _DATASETS or model.dataset == dataset]
    if not fitting:
        raise UserError(f"robustbench:{text} is not for {dataset}: choose from {', '.join(m.spec for m in given)}")
    best = min(fitting, key=lambda model: norm is not None and model.norm != norm)
    notes = [f"{name} names {len(given)} models; chosen: {best.spec}"] if len(given) > 1 else []
    return best, notes


def published_accuracy(model: ZooModel) -> float | None:
    """The clean accuracy, a fraction, that RobustBench publishes for `model`; None if it is not known here.

    The table was read from `model_info/` of RobustBench's repository (commit 78fcc9e).
    """
    table = json.loads((Path(__file__).parent / "robustbench_clean.json").read_text())
    percent = table.get(f"{model.dataset}/{model.threat}/{model.name}")
    return None if percent is None else percent / 100


def load(model: ZooModel) -> nn.Module:
    """The network in eval mode. Its weights are downloaded if they are not in `model.folder`.

    Raises UserError if they cannot be downloaded or loaded, or are a pickle that could run code and is not trusted.
    """
    from advbench.models.pickles import guarded

    with imported() as robustbench, warnings.catch_warnings(), guarded():
        warnings.simplefilter("ignore")
        timm_name = f"{model.name.lower().replace('-', '_')}_{model.dataset}_{model.threat.lower()}"
        timm = importlib.import_module("timm")
        if timm.is_model(timm_name):
            return _from_timm(timm, timm_name, model)
        for file, drive_id in model.files:
            if drive_id is not None and not (model.folder / file).is_file():
                _download(model, file, drive_id)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return robustbench.load_model(  # type: ignore[no-any-return]
                    model.name,
                    model_dir=model.folder.parent.parent,
                    dataset=model.dataset,
                    threat_model=model.threat,
                )
        except Untrusted:
            raise
        except Exception as error:  # RobustBench passes on any error of its model code, torch or the network
            raise UserError(f"cannot load {model.spec}: {one_line(error)}; {_placing(model)}") from error


def _from_timm(timm: Any, name: str, model: ZooModel) -> nn.Module:
    file = model.folder / f"{model.name}.pt"
    try:
        return timm.create_model(  # type: ignore[no-any-return]
            name,
            num_classes=NUM_CLASSES[model.dataset],
            pretrained=not file.is_file(),
            checkpoint_path=str(file) if file.is_file() else "",
        ).eval()
    except Untrusted:
        raise
    except Exception as error:  # as above
        raise UserError(f"cannot load {model.spec}: {one_line(error)}; {_placing(model)}") from error


def _download(model: ZooModel, file: str, drive_id: str) -> None:
    gdown = importlib.import_module("gdown")
    from advbench.files import atomic_path

    with atomic_path(model.folder / file) as temporary:
        try:
            got = gdown.download(id=drive_id, output=str(temporary), quiet=True)
            if got is None or temporary.stat().st_size == 0:
                raise ConnectionError("the download is empty")
        except Exception as error:  # gdown raises its own errors, and those of requests and the system
            raise UserError(f"cannot download {model.spec} ({one_line(error)}): {_placing(model)}") from error


def _placing(model: ZooModel) -> str:
    if model.name == "Standard_R50":  # RobustBench uses torchvision's weights
        return "to load it offline place torchvision's resnet50-0676ba61.pth in TORCH_HOME/hub/checkpoints"
    wanted = [f"{file} (Google Drive id {drive})" if drive else file for file, drive in model.files]
    return f"to load it offline place {', '.join(wanted)} in {model.folder}"


@contextlib.contextmanager
def imported() -> Iterator[Any]:
    """Yields RobustBench's `utils`. While that is imported, pyautoattack stands in for `autoattack`.

    The package `autoattack` is not on the package index. Raises UserError if the import fails.
    """
    borrowed = []
    if "robustbench" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        for name in ("autoattack", "autoattack.state"):
            sys.modules[name] = importlib.import_module(f"py{name}")
            borrowed.append(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            utils = importlib.import_module("robustbench.utils")
    except ImportError as error:
        raise UserError(f"robustbench cannot be imported: {one_line(error)}") from error
    finally:
        for name in borrowed:
            del sys.modules[name]
    yield utils


def _pairs(call: ast.Call) -> Iterator[tuple[str, Any]]:
    """(name, gdrive_id) of each entry in `OrderedDict([(name, {"model": ..., "gdrive_id": ...}), ...])`."""
    items = call.args[0] if call.args else None
    for item in items.elts if isinstance(items, ast.List) else []:
        if not (isinstance(item, ast.Tuple) and len(item.elts) == 2):
            continue
        name, about = item.elts
        if isinstance(name, ast.Constant) and isinstance(about, ast.Dict):
            fields = {
                key.value: value
                for key, value in zip(about.keys, about.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            yield str(name.value), ast.literal_eval(fields["gdrive_id"])


def _files(name: str, ids: Any) -> tuple[tuple[str, str | None], ...]:
    if isinstance(ids, list):
        return tuple((f"{name}.pt_m{index}.pt", drive_id) for index, drive_id in enumerate(ids))
    return ((f"{name}.pt", ids or None),)
