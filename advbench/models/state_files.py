"""Reading weight files made elsewhere, without running the code that a pickle may carry."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from advbench import consent
from advbench.errors import Untrusted, UserError, one_line, reading
from advbench.models import pickles
from advbench.models.outside import stored

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin")

# Keys under which training scripts save weights. The averaged ones are last: of a file with both, the others are used.
_WRAPPINGS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "0.", "1.")
_POINTER = b"version https://git-lfs"


def read_state(path: Path) -> tuple[dict[str, Tensor] | nn.Module, dict[str, str]]:
    """The state dict in `path`, and its metadata (safetensors only). A trusted pickle may be a whole module.

    Raises UserError if the file is missing or truncated, holds no tensors, or is a pickle that could run code and is
    not trusted.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    with reading(path), path.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise UserError(f"{path} is a pointer of Git LFS: get the file by git lfs pull (CI: lfs: true of checkout)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_torch(path)
    if isinstance(content, nn.Module):
        return content, {}
    return unwrap(content, path), {}


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in `content`, which a training script saved to `path`. Raises UserError if there is none.

    All its tensors are dense, and of real numbers.
    """
    found = content
    for _ in range(3):
        if not isinstance(found, Mapping):
            break
        inner = [found[key] for key in _WRAPPINGS if isinstance(found.get(key), Mapping | nn.Module)]
        if not inner:
            break
        found = inner[0]
    if isinstance(found, nn.Module):
        found = found.state_dict()
    tensors = {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        held = ", ".join(list(map(str, content))[:8]) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(
            f"{path} holds no state dict of tensors but {held or 'nothing'}: "
            "save net.state_dict(), alone or under the key state_dict"
        )
    return _dense(tensors, path)


def fit_state(net: nn.Module, state: Mapping[str, Tensor], source: str, name: str) -> None:
    """Load `state` into `net`, without prefixes such as "module.". Raises UserError that names what does not fit."""
    net = stored(net)
    wanted = net.state_dict()
    state = match_prefix(state, wanted)
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {tuple(state[key].shape)} where {tuple(value.shape)} is wanted"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing keys", missing), ("unknown keys", foreign), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise UserError(f"{source} does not fit {name}: {'; '.join(faults)}")
    filled = {key: state[key].to(value.dtype) if key in state else value for key, value in wanted.items()}
    broken = [key for key, value in filled.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{source} has weights that are NaN or infinite: {', '.join(broken[:3])}")
    net.load_state_dict(filled)


def _dense(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`tensors` of the file `path`. Raises UserError unless they are dense, and of real numbers."""
    for key, value in tensors.items():
        if kind := _kind(value):
            raise UserError(f"{path} has {key} as {kind}: save it dense, in float32")
    return tensors


def _kind(value: Tensor) -> str:
    """What `value` is where it is not just numbers in memory."""
    if value.is_nested or value.is_meta:
        return "a nested tensor" if value.is_nested else "a meta tensor, without values"
    if value.is_quantized or value.is_complex():
        return "a quantized tensor" if value.is_quantized else "a complex tensor"
    return "" if value.layout == torch.strided else "a sparse tensor"


def match_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """`state` without a prefix that all its keys share; prefixes are removed until a key is one of `wanted`."""
    while state and not any(key in wanted for key in state):
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
            metadata = stream.metadata() or {}
    except Exception as error:  # a file from elsewhere may make the reader fail in any way
        raise UserError(f"{path} is truncated, altered or no safetensors file: {one_line(error)}") from error
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return _dense(tensors, path), metadata


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings on pickle protocols; a file that cannot be read raises below
            return pickles.load(path, map_location="cpu")
    except Untrusted:
        raise
    except Exception as error:  # a file from elsewhere may make the reader fail in any way
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript archive: leave out --arch, or save net.state_dict()") from error
        if isinstance(error, AttributeError | ImportError) and consent.current().pickle:
            raise UserError(f"{path} needs code that cannot be imported: {one_line(error)}") from error
        raise UserError(f"{path} is truncated, altered or no torch file: {one_line(error)}") from error
