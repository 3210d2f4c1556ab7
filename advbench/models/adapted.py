"""Networks as people have them, made to take float32 images in [0, 1] and to return float32 logits (B, K).

What a network needs for that is found by trying it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from advbench.errors import Interrupted, UserError
from advbench.models.untouched import untouched

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_BATCH_SIZES = (4, 8, 16, 32)  # tried where a network refuses one image and two; few, since most errors are others
_MAX_BATCH_SIZE = 512  # of those that its error messages name
_DTYPES = (torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Needs:
    """What stands between images and a network, and between its answer and logits.

    `copies`: it changes its input. `dtype`: of the images that it takes; None: float32. `batch_size`: the only one that
    it takes. `twice`: it does not answer a single image. `pick` gets the logits from its answer. `single`: it has one
    output z, so that the logits are [0, z]. `casts`: its logits are not float32.
    """

    copies: bool = False
    dtype: torch.dtype | None = None
    batch_size: int | None = None
    twice: bool = False
    pick: Callable[[Any], Any] | None = None
    single: bool = False
    casts: bool = False


class Adapted(nn.Module):
    """`net` with what it `needs`: from float32 images (B, C, H, W) in [0, 1] to float32 logits (B, K)."""

    def __init__(self, net: nn.Module, needs: Needs) -> None:
        super().__init__()
        self.net, self.needs = net, needs
        self.training = getattr(net, "training", False)
        self.settings, self.wrappers = getattr(net, "settings", {}), getattr(net, "wrappers", [])

    def train(self, mode: bool = True) -> Adapted:
        self.training = mode
        try:
            self.net.train(mode)
        except NotImplementedError:  # an exported program: what it computes no longer depends on its mode
            for module in self.net.modules():
                module.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        size = self.needs.batch_size
        if self.needs.twice and len(x) == 1:
            return self._logits(_repeated(x, 2))[:1]
        if size is None:
            return self._logits(x)
        return torch.cat([self._logits(_repeated(part, size))[: len(part)] for part in x.split(size)])

    def _logits(self, x: Tensor) -> Tensor:
        needs = self.needs
        if needs.copies:
            x = x.clone()
        answer = self.net(x if needs.dtype is None else x.to(needs.dtype))
        z: Tensor = answer if needs.pick is None else needs.pick(answer)
        return (of_two(z) if needs.single else z).float()


def plain(net: nn.Module) -> nn.Module:
    """The network whose tensors are the model's identity: without `Adapted`, torch.compile and DataParallel."""
    return _unwrapped(net.net if isinstance(net, Adapted) else net)[0]


def of_two(z: Tensor) -> Tensor:
    """The logits (B, 2) of two classes, 0 and z, of one output z (B,) or (B, 1)."""
    z = z.reshape(-1, 1)
    return torch.cat([torch.zeros_like(z), z], 1)


def adapted(net: nn.Module, x: Tensor, classes: int | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """A module that runs `net` on float32 images in [0, 1] and returns float32 logits (B, K), and notes for the user.

    `net` is tried on images x, (B, C, H, W) with B >= 2, in eval mode, and stays as it is. What torch.compile and
    DataParallel put around it or its parts is left out. The module is `net` itself where it needs nothing, or does not
    work on these images at all. `classes`: see `reading`, which raises UserError.
    """
    inner, notes = _unwrapped(net)
    with untouched(Adapted(inner, Needs())), torch.no_grad():
        needs, more = _needs(inner, x, classes)
        if needs == Needs() and not isinstance(inner, torch.jit.ScriptModule) and _has_modes(inner):
            return inner, (*notes, *more)
    return Adapted(inner, needs), (*notes, *more)


def _unwrapped(net: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """`net` without torch.compile and DataParallel, around it and its parts. Modules that change are shallow copies."""
    found: dict[int, nn.Module] = {}
    removed: dict[str, None] = {}

    def bare(module: nn.Module) -> nn.Module:
        if id(module) not in found:
            found[id(module)] = module  # for modules that contain themselves
            found[id(module)] = changed(module)
        return found[id(module)]

    def changed(module: nn.Module) -> nn.Module:
        if isinstance(module, torch.jit.ScriptModule):
            return module
        if isinstance(module, _PARALLEL):
            removed[type(module).__name__] = None
            return bare(module.module)
        if isinstance(original := module._modules.get("_orig_mod"), nn.Module):
            removed["torch.compile"] = None
            return bare(original)
        parts = {name: part if part is None else bare(part) for name, part in module._modules.items()}
        compiled = module._compiled_call_impl is not None
        if not compiled and all(part is module._modules[name] for name, part in parts.items()):
            return module
        if compiled:
            removed["torch.compile"] = None
        result = copy.copy(module)  # without what `compile()` made
        result._modules = parts
        return result

    result = bare(net)
    return result, (f"{' and '.join(removed)} left out: the network inside is evaluated",) if removed else ()


def _has_modes(net: nn.Module) -> bool:
    """Whether `net` can be put into eval mode, which an exported program refuses."""
    try:
        net.eval()
    except NotImplementedError:
        return False
    return True


def _needs(net: nn.Module, x: Tensor, classes: int | None) -> tuple[Needs, tuple[str, ...]]:
    """What `net`, in eval mode, needs to answer images like x, with notes; nothing where it does not work at all."""
    place = next((value.device for value in (*net.parameters(), *net.buffers())), x.device)
    said: list[str] = []
    for needs in _attempts(net, said):
        images = _repeated(x, needs.batch_size or len(x)).to(place, needs.dtype or x.dtype).clone()
        before, version = images.clone(), images._version
        try:
            answer = net(images)
        except (torch.OutOfMemoryError, Interrupted):
            raise
        except Exception as error:  # a network from elsewhere may raise anything
            said.append(str(error))
            continue
        read = reading(answer, classes, rows=len(images))
        if read is None:
            break
        copies = images._version != version or not torch.equal(images, before)
        casts = (answer if read.pick is None else read.pick(answer)).dtype != torch.float32
        needs = replace(needs, copies=copies, pick=read.pick, single=read.single, casts=casts)
        needs = replace(
            needs, twice=needs.batch_size is None and not _answers_one(Adapted(net, needs), x[:1].to(place))
        )
        return needs, (*_notes(needs), *read.notes)
    return Needs(), ()


def _answers_one(net: Adapted, x: Tensor) -> bool:
    """Whether `net` returns logits (1, K) for one image."""
    try:
        return net(x).dim() == 2
    except (torch.OutOfMemoryError, Interrupted):
        raise
    except Exception:  # a network from elsewhere may raise anything
        return False


def _attempts(net: nn.Module, said: list[str]) -> Iterator[Needs]:
    """What may be needed to run `net` at all, the likeliest first. `said`: the errors of the attempts so far."""
    own = {value.dtype for value in net.parameters() if value.is_floating_point()}
    dtypes = [None, *(dtype for dtype in _DTYPES if dtype in own or not own)]
    yield from (Needs(dtype=dtype, batch_size=size) for size in (None, 1) for dtype in dtypes)
    named = [int(number) for text in said for number in re.findall(r"\b[1-9]\d{0,3}\b", text)]
    sizes = [size for size in named if size <= _MAX_BATCH_SIZE]
    for size in dict.fromkeys((*sizes, *_BATCH_SIZES)):
        yield from (Needs(dtype=dtype, batch_size=size) for dtype in dtypes)


def _notes(needs: Needs) -> Iterator[str]:
    if needs.dtype is not None:
        yield f"the model takes {str(needs.dtype).removeprefix('torch.')} images; attacks search it in this precision"
    if needs.batch_size is not None:
        yield f"the model takes batches of {needs.batch_size} only: passes are of that size, the last one filled up"
    if needs.twice:
        yield "the model does not answer a single image: it is given it twice"
    if needs.copies:
        yield "the model changes its input: it is given copies"


@dataclass(frozen=True)
class Reading:
    """How logits are read from an answer: see `Needs`."""

    pick: Callable[[Any], Any] | None = None
    single: bool = False
    notes: tuple[str, ...] = ()


def reading(answer: Any, classes: int | None = None, *, rows: int | None = None) -> Reading | None:
    """How the logits are read from the answer to `rows` images (None: any number); None where it has none.

    Of several tensors it is the one that is called logits, or else that fits `classes`, if these are known, by its
    number of columns (one more for a rejection). Raises UserError where that leaves more than one.
    """
    if isinstance(answer, Tensor):
        return _of_tensor(answer, rows)
    kind, parts = type(answer).__name__, _parts(answer)
    each = {name: found for name, (value, _) in parts.items() if (found := _of_tensor(value, rows))}
    if "logits" in parts:
        each = {name: found for name, found in each.items() if name == "logits"}
    fitting = [
        {name: found for name, found in each.items() if (2 if found.single else parts[name][0].shape[1]) == count}
        for count in (() if classes is None else (classes, classes + 1))
    ]
    if one := next((found for found in fitting if len(found) == 1), None):
        each = one
    elif not all(found.single for found in each.values()):
        each = {name: found for name, found in each.items() if not found.single}
    if len(each) > 1:
        shapes = ", ".join(f"{name} {tuple(parts[name][0].shape)}" for name in each)
        raise UserError(
            f"the model returns a {kind} in which several tensors may be the logits ({shapes}): return the logits "
            "alone, or name them logits"
        )
    for name, found in each.items():
        note = (
            f"the logits are {'element ' if isinstance(name, int) else ''}{name} of the {kind} that the model returns"
        )
        return replace(found, pick=parts[name][1], notes=(note, *found.notes))
    return None


def _of_tensor(answer: Any, rows: int | None) -> Reading | None:
    if not isinstance(answer, Tensor) or len(answer.shape) not in (1, 2) or rows not in (None, len(answer)):
        return None
    if answer.dim() == 2 and answer.shape[1] > 1:
        return Reading()
    if answer.numel() != len(answer) or not answer.is_floating_point():
        return None
    return Reading(single=True, notes=("the model's one output z is taken as the logits [0, z] of two classes",))


def _parts(answer: Any) -> dict[Any, tuple[Any, Callable[[Any], Any]]]:
    """The parts of an answer by name, each with what gets it from such an answer."""
    if isinstance(answer, Mapping):
        return {name: (value, itemgetter(name)) for name, value in answer.items()}
    if isinstance(answer, list | tuple) and not hasattr(answer, "_fields"):
        return {place: (value, itemgetter(place)) for place, value in enumerate(answer)}
    names = getattr(answer, "_fields", None) or [*getattr(answer, "__dict__", ()), "logits"]
    return {name: (getattr(answer, name), attrgetter(name)) for name in names if hasattr(answer, name)}


def _repeated(x: Tensor, size: int) -> Tensor:
    """`size` images: the first ones of x, which are repeated where these are fewer."""
    return torch.cat([x] * (size // len(x) + 1))[:size]
