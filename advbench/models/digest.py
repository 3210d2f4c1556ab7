"""The hash of a Python object by what it contains: of a fitted predictor, or of what a function holds on to."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_NOT_DATA = (ModuleType, FunctionType, BuiltinFunctionType, type)  # their source files have a hash of their own


def digest(thing: Any, inside: frozenset[int] = frozenset()) -> bytes | None:
    """The sha256 (32 bytes) of `thing`, the same in every process; None where it cannot be pickled.

    Of arrays, tensors and networks the values count, not where or how they lie in memory. Of a function its name and
    the values count that it reads from around it: its source file has a hash of its own. `inside`: the functions (by
    id) around `thing`, which are not followed again.
    """
    sink = _Sink()
    try:
        _Contents(sink, inside).dump(thing)
    except Exception:  # whatever the parts of `thing` raise when they are pickled
        return None
    return sink.hash.digest()


class _Sink:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, part: Any) -> int:
        self.hash.update(part)
        return len(part)


class _Contents(pickle.Pickler):
    def __init__(self, sink: _Sink, inside: frozenset[int]) -> None:
        super().__init__(sink, protocol=4)
        self.inside = inside
        self.fast = True  # equal parts are written alike, whether or not they are one object

    def reducer_override(self, part: Any) -> Any:
        if isinstance(part, np.ndarray) and not part.dtype.hasobject:
            fields = [part[name] for name in part.dtype.names or ()]  # without the undefined bytes between them
            return tuple, (part.dtype.str, part.shape, fields or part.tobytes())
        if isinstance(part, Tensor):
            return tuple, (str(part.dtype), part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        if isinstance(part, nn.Module):
            return tuple, (repr(part), [*part.named_parameters(), *part.named_buffers()])
        if isinstance(part, FunctionType):
            place = part.__module__, part.__qualname__, part.__code__.co_firstlineno
            return tuple, (place, [] if id(part) in self.inside else self.around(part))
        return NotImplemented

    def around(self, function: FunctionType) -> list[Any]:
        """What `function` reads: its defaults, the variables around it, and the data among its module's."""
        seen = inspect.getclosurevars(function)
        data = {name: value for name, value in seen.globals.items() if not isinstance(value, _NOT_DATA)}
        inside = self.inside | {id(function)}
        named = sorted({**data, **seen.nonlocals}.items())
        return [(name, digest(value, inside)) for name, value in named] + [
            digest(value, inside) for value in (function.__defaults__, function.__kwdefaults__)
        ]
