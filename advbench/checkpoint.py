"""The only bridge from training to evaluation: run folders, weights and their hashes, and `load_model`.

A run folder holds `model.safetensors` (best on validation), `last.safetensors`, `run.json` (the
RunCard), the recipe, metrics and `train_state/`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor, nn

from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.files import read_sealed, sha256_file, write_atomic, write_sealed
from advbench.models import architectures, describe, external, rebuild
from advbench.models.base import Model
from advbench.models.state_files import fit_state, read_state
from advbench.record import Flag
from advbench.registry import entries

CARD = "run.json"
BEST = "model.safetensors"
LAST = "last.safetensors"
_STATE = Path("train_state") / "state.bin"
_PLAIN = (type(None), bool, int, float, str, bytes, Tensor, nn.Parameter)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class WrapperCard(_Card):
    """A wrapper of `models/` and its settings."""

    name: str
    settings: dict[str, JsonValue] = {}


class ModelCard(_Card):
    """What `models.rebuild` needs to make the network again; the wrappers from the innermost on."""

    arch: str
    settings: dict[str, JsonValue] = {}
    num_classes: Count
    in_channels: Count
    image_size: Count
    wrappers: tuple[WrapperCard, ...] = ()


class RunCard(_Card):
    """`run.json`: what a run folder holds and how it came to be.

    `files` maps each weight file to the sha256 of its bytes; `cost` and `results` are the trainer's
    own (seconds, passes, accuracies). `finished` is False while the run can be resumed.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    model: ModelCard
    files: dict[str, Sha256]
    method: str
    method_settings: dict[str, JsonValue] = {}
    dataset: str
    norm: str | None = None
    eps: float | None = None
    eps_text: str | None = None
    seed: int
    recipe_sha256: Sha256 | None = None
    environment: dict[str, JsonValue] = {}
    cost: dict[str, JsonValue] = {}
    results: dict[str, JsonValue] = {}
    flags: tuple[Flag, ...] = ()
    finished: bool = True

    @property
    def trained(self) -> dict[str, Any]:
        """What a record tells of the training."""
        told = ("method", "dataset", "norm", "eps", "eps_text", "seed", "recipe_sha256", "cost", "flags")
        return self.model_dump(mode="json", include=set(told))


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode on its device, and what is known of it. `notes` are for the user to read."""

    net: nn.Module
    spec: str
    arch: str
    weights_sha256: str
    trained: dict[str, Any] | None
    num_classes: int
    notes: tuple[str, ...] = ()
    dataset: str | None = None
    folder: Path | None = None


def load_model(
    spec: str,
    *,
    arch: str | None = None,
    dataset: Dataset | str | None = None,
    norm: str | None = None,
    device: torch.device | str = "cpu",
    trust_pickle: bool = False,
) -> Loaded:
    """The network that `spec` names: a run folder, one of its weight files, or any of `external.FORMS`.

    `dataset` (loaded, or its name) decides between models of one name, gives what a weight file does
    not tell, and is what the network must fit; `norm` only decides between models of one name.
    Raises UserError in one line: no such model, a damaged file, a pickle, weights that do not fit,
    other channels or classes than the dataset's.
    """
    shape = _shape(dataset)
    path = Path(spec)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or (path.is_file() and (folder / CARD).is_file() and path.name in read_card(folder).files):
        file = BEST if path.is_dir() else path.name
        loaded = _load_run(spec, folder, file, arch, trust_pickle)
    else:
        found = external.load(spec, arch=arch, shape=shape, norm=norm, trust_pickle=trust_pickle)
        classes = found.num_classes or (shape.num_classes if shape else _outputs(found.net))
        if not classes:
            raise UserError(f"{spec} does not tell its number of classes: name the --dataset")
        notes = found.notes
        if any(value.is_floating_point() and value.dtype != torch.float32 for value in found.net.parameters()):
            notes = (*notes, f"{spec} was stored in another precision and is used in fp32")
            found.net.float()
        digest = weights_sha256(found.net)
        loaded = Loaded(found.net, spec, found.arch, digest, None, classes, notes, found.dataset)
    if shape is not None:
        _check_fits(loaded, shape)
    loaded.net.to(device)
    return loaded


def weights_sha256(net: nn.Module) -> str:
    """sha256 over all parameters and buffers: name, dtype, shape and bytes of each, sorted by name.

    Of the values alone: the same whatever file, device or memory layout they come from.
    """
    digest = hashlib.sha256()
    for name, value in sorted([*net.named_parameters(), *net.named_buffers()], key=lambda pair: pair[0]):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(net: nn.Module, path: Path) -> str:
    """Write the state dict as safetensors, atomically; the sha256 of the file's bytes.

    A Model's description goes into the header, so that the file loads without --arch. Raises UserError.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    stored: set[int] = set()
    for name, value in tensors.items():
        if value.numel() and value.data_ptr() in stored:  # safetensors refuses tensors that share memory
            tensors[name] = value.clone()
        stored.add(value.data_ptr())
    about = {external.METADATA: json.dumps(describe(net), sort_keys=True)} if isinstance(net, Model) else None
    content = safetensors.torch.save(tensors, metadata=about)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def write_card(folder: Path, card: RunCard) -> None:
    """Write `run.json` atomically. Write the weight files first: the card vouches for them. Raises UserError."""
    write_atomic(folder / CARD, card.model_dump_json(indent=2, by_alias=True) + "\n")


def read_card(folder: Path) -> RunCard:
    """The card of a run folder. Raises UserError when the folder is no run, or its card is damaged."""
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        runs = sorted(str(run.parent) for run in folder.glob(f"*/{CARD}"))[:5] if folder.is_dir() else []
        hint = f"; did you mean {' or '.join(runs)}?" if runs else ""
        raise UserError(f"{folder} is no run folder: {CARD} is missing{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    try:
        return RunCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is damaged or of another version: {where}: {first['msg']}") from error


def newest_run(root: Path = Path("runs")) -> Path:
    """The run folder under `root` whose card was written last. Raises UserError when there is none."""
    cards = sorted(root.glob(f"*/{CARD}"), key=lambda card: card.stat().st_mtime)
    if not cards:
        raise UserError(
            f"no run in {root}/: train one (advbench train), or name a model with --model: {external.FORMS}"
        )
    return cards[-1].parent


def save_train_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write what resuming needs into `folder`/train_state, atomically and sealed by its sha256.

    `state`: tensors, numbers, texts, None, and dicts, lists and tuples of them (else TypeError).
    """
    _check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_sealed(folder / _STATE, buffer.getvalue())


def load_train_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save_train_state` wrote, tensors on `device`. Raises UserError when there is none, or it is damaged."""
    if not (folder / _STATE).is_file():
        raise UserError(f"{folder} cannot be resumed: {_STATE} is missing")
    content = io.BytesIO(read_sealed(folder / _STATE))
    state: dict[str, Any] = torch.load(content, map_location=device, weights_only=True)
    return state


def _load_run(spec: str, folder: Path, file: str, arch: str | None, trust: bool) -> Loaded:
    card = read_card(folder)
    model = card.model
    if arch is not None and arch != model.arch:
        raise UserError(f"{spec} is a run of {model.arch}: leave out --arch {arch}")
    if model.arch not in architectures() and arch is None and not trust:
        raise UserError(
            f"{spec} names code outside advbench ({model.arch}), which loading would run: "
            f"pass --arch {model.arch} if you trust it"
        )
    if file not in card.files or not (folder / file).is_file():
        raise UserError(f"{folder} is no complete run folder: {file} is missing")
    if sha256_file(folder / file) != card.files[file]:
        raise UserError(f"{folder / file} is truncated or altered: its sha256 is not the one in {CARD}")
    net = rebuild(model.model_dump(mode="json"), seed=0)
    state, _ = read_state(folder / file)
    assert isinstance(state, dict)
    fit_state(net, state, str(folder / file), model.arch)
    notes = () if card.finished else (f"{folder} is not trained to its end",)
    return Loaded(
        net.eval(), spec, model.arch, weights_sha256(net), card.trained, model.num_classes, notes, card.dataset, folder
    )


def _shape(dataset: Dataset | str | None) -> external.Shape | None:
    if isinstance(dataset, Dataset):
        return external.Shape(dataset.name, dataset.num_classes, dataset.shape)
    if dataset is None:
        return None
    entry = entries("data").get(dataset)
    if entry is None or "shape" not in entry.about:
        return None  # its shape is known only once it is loaded
    channels, height, width = entry.about["shape"]
    return external.Shape(dataset, int(entry.about["num_classes"]), (channels, height, width))


def _check_fits(loaded: Loaded, shape: external.Shape) -> None:
    """UserError unless the network answers images of that shape with that many logits."""
    net, images = loaded.net, "x".join(map(str, shape.image))
    channels = getattr(net, "in_channels", shape.image[0])
    if channels != shape.image[0]:
        raise UserError(f"{loaded.spec} takes images of {channels} channels, {shape.name} has {images}")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # some networks draw random numbers
            logits = net(torch.full((2, *shape.image), 0.5))
    except Exception as error:  # a foreign network may raise anything
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{loaded.spec} does not take the {images} images of {shape.name}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        raise UserError(f"{loaded.spec} does not answer images with logits (B, classes)")
    if logits.shape[1] != shape.num_classes:
        raise UserError(f"{loaded.spec} has {logits.shape[1]} classes, {shape.name} has {shape.num_classes}")


def _outputs(net: nn.Module) -> int:
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else 0


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where} has the key {key!r}: keys are texts or whole numbers")
            _check_plain(inner, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    elif type(value) not in _PLAIN:  # not isinstance: a numpy number is a float that could not be loaded again
        raise TypeError(f"{where} is a {type(value).__name__}: only tensors and plain values can be saved")
