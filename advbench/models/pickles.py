"""torch.load, which unpickles nothing but tensors without consent, whoever calls it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from advbench import consent
from advbench.errors import Untrusted
from advbench.registry import search_current_folder

_torch_load = torch.load
# What torch.load says of a pickle that needs more than tensors, in several ways.
_NEEDS_MORE = re.compile(r"nsupported|unrecognized function|allowlisted|legacy \.tar|explicit pickle_module")


def load(file: Any, *args: Any, **how: Any) -> Any:
    """What torch.load reads from `file`, a path or a stream.

    Raises Untrusted for a pickle that needs more than tensors, without consent to pickles.
    """
    trusted = consent.current().pickle
    if trusted:
        search_current_folder()  # whose classes the pickle may name
    try:
        return _torch_load(file, *args, **{**how, "weights_only": not trusted})
    except (pickle.UnpicklingError, RuntimeError) as error:
        if trusted or not _NEEDS_MORE.search(str(error)):
            raise
        needs = re.search(r"GLOBAL ([\w.]+)", str(error))
        name = getattr(file, "name", file)
        more = f"more than tensors ({needs[1]})" if needs else "more than tensors"
        raise Untrusted(
            f"{name} is a pickle that needs {more}; loading it would run whatever code its author "
            "put in: save net.state_dict() instead, or pass --trust-pickle if you trust its author"
        ) from error


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, `load` stands in for torch.load, which other libraries call in their own ways."""
    before, torch.load = torch.load, load  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = before
