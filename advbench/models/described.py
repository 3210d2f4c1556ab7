"""Networks that a file describes, which are never larger than the tensors that the file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from advbench.errors import UserError, one_line
from advbench.models import architectures, rebuild, sides
from advbench.models.base import Model
from advbench.registry import LIBRARIES

# Whole numbers up to this, such as the levels of a quantised layer or the pixels of an image, need no tensor.
_FREE = 2**22


def rebuild_for(state: Mapping[str, Tensor], description: dict[str, Any], source: str) -> Model:
    """The network that `source` describes beside its tensors `state`, with new weights.

    Raises UserError for a faulty description, and for that of a network with more or larger parameters than `state`
    has tensors, before such a network takes time or memory. Code from outside builds what it wants.
    """
    try:
        arch, library = description["arch"], description["arch"].partition(":")[0]
        if arch in architectures() or library in LIBRARIES:
            fault = f"{source} does not fit {arch}"
            _check_numbers(state, description, fault)
            with sketching(state, fault, memory=library == "timm"):  # whose nets cannot be built without
                rebuild(description)
        return rebuild(description, seed=0)
    except UserError:
        raise
    except Exception as error:  # settings of any kind and size
        raise UserError(f"{source} has a faulty description of its architecture: {one_line(error)}") from error


@contextmanager
def sketching(state: Mapping[str, Tensor], fault: str, *, memory: bool = False) -> Iterator[None]:
    """Inside, a network larger than `state` raises UserError, which `fault` begins; without `memory` it has none."""
    tensors, elements = len(state), _elements(state)

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter) -> None:
        nonlocal tensors, elements
        tensors, elements = tensors - 1, elements - parameter.numel()
        if tensors < 0 or elements < 0:
            raise _too_large(state, fault)

    hook = register_module_parameter_registration_hook(count)
    try:
        with nullcontext() if memory else torch.device("meta"):
            yield
    finally:
        hook.remove()


def _check_numbers(state: Mapping[str, Tensor], description: dict[str, Any], fault: str) -> None:
    """Raise UserError for a whole number, an image or a pile of wrappers too large to belong to `state`."""
    bound = max(_FREE, _elements(state))
    height, width = sides(description["image_size"])
    pixels = description["in_channels"] * height * width
    if max([pixels, *_integers(description)]) > bound or len(description["wrappers"]) > len(state):
        raise _too_large(state, fault)


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _integers(inner)


def _elements(state: Mapping[str, Tensor]) -> int:
    """How many numbers the tensors hold in memory: a tensor may claim more, by repeating them or sharing others'."""
    dense = [value for value in state.values() if value.layout == torch.strided]
    storages = [(value.untyped_storage(), value.itemsize) for value in dense]
    return sum({storage.data_ptr(): storage.nbytes() // size for storage, size in storages}.values())


def _too_large(state: Mapping[str, Tensor], fault: str) -> UserError:
    held = f"{len(state)} tensors of {_elements(state)} numbers in all"
    return UserError(f"{fault}: as described it is larger than what the file holds, {held}")
