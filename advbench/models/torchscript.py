"""Files that torch.jit.save has written: the archive of a TorchScript module."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from advbench import consent
from advbench.errors import Untrusted, reading

# TorchScript is not Python, but these of its functions write or map files, or reach other machines.
_REACHES_OUT = re.compile(r"\b(save|from_file|load_tensor|rpc_\w+)\b")


def is_torchscript(path: Path) -> bool:
    """Whether the file is such an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load(path: Path) -> nn.Module:
    """The module in the archive, on the CPU.

    Raises UserError if it cannot be read, and Untrusted, without consent to pickles, if its code could reach files.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        code = [archive.read(name).decode() for name in archive.namelist() if re.search(r"/code/.*\.py$", name)]
        reached = next((found[0] for text in code if (found := _REACHES_OUT.search(text))), None)
    if reached and not consent.current().pickle:
        raise Untrusted(
            f"{path} is a TorchScript archive whose code calls {reached}, which could write files: pass --trust-pickle "
            "if you trust its author"
        )
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates TorchScript
        return torch.jit.load(path, map_location="cpu")  # type: ignore[no-any-return, no-untyped-call]
