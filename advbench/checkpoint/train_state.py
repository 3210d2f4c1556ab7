"""The training state, which resuming needs: a sealed file of tensors and plain values, loaded without running code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advbench.errors import UserError, reading
from advbench.files import read_sealed, write_sealed

STATE = Path("train_state") / "state.bin"
_PLAIN = (type(None), bool, int, float, str, bytes, Tensor, nn.Parameter)


def save_train_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` into `folder`/train_state, atomically and with its sha256 as a seal.

    `state`: tensors, numbers, texts, None, and dicts, lists and tuples of them. Raises TypeError for anything else,
    and UserError if the file cannot be written.
    """
    _check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_sealed(folder / STATE, buffer.getvalue())


def load_train_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that `save_train_state` wrote, with tensors on `device`. Raises UserError if missing or damaged."""
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} cannot be resumed: {STATE} is missing")
    content = io.BytesIO(read_sealed(folder / STATE))
    with reading(f"{folder / STATE}; start over with --force"):
        state = torch.load(content, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise UserError(f"{folder / STATE} holds no training state: start over with --force")
        return state


def _check_plain(value: Any, where: str) -> None:
    """Raise TypeError for what cannot be saved; `where` names the value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where} has the key {key!r}: keys are texts or whole numbers")
            _check_plain(inner, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    elif type(value) not in _PLAIN:  # not isinstance: a numpy number is a float, but cannot be loaded again
        raise TypeError(f"{where} is a {type(value).__name__}: only tensors and plain values can be saved")
