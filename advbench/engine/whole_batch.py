"""Attacks that run the model themselves on a whole batch at one eps: those of other libraries, or a user's function.

They are called once per batch and grid point, always with the same batches and with the batch's own seed. Their results
are checked like those of a search: the untouched model judges each returned point, and points outside the ball do not
count.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advbench import rng
from advbench.engine.attack import Attack
from advbench.engine.kernels import out_of_memory
from advbench.engine.losses import margin, wrong
from advbench.engine.oracle import Oracle
from advbench.engine.rejection import in_8_bit
from advbench.engine.tensors import rows
from advbench.errors import Interrupted, UserError, one_line
from advbench.threat import Region, around

ROUNDING = 1e-6  # of the perturbation's size, in units of the images: a point so near the ball is moved into it


@dataclass(frozen=True, kw_only=True)
class WholeBatch(Attack):
    """Base class. A subclass must define `points` only.

    `from_outside`: its code may draw random numbers that no seed decides, so the evaluation repeats a batch.
    `queries_only`: whether it was seen to make no backward pass.
    """

    norms = ("linf", "l2", "l1", "fourier-linf")
    from_outside: ClassVar[bool] = True

    steps: int = 1
    queries_only: bool = False

    def follows_gradient(self) -> bool:
        return not self.queries_only

    def points(self, net: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int) -> Tensor:
        """Candidate adversarial examples (B, C, H, W) for `net`, images x (B, C, H, W) in [0, 1] and labels y (B,)."""
        raise NotImplementedError

    def knows_eps(self) -> bool:
        """Whether it is told eps, so that a point outside of the ball is a fault."""
        return True

    def needs_small_logits(self) -> bool:
        return False  # its loss is not known

    def with_count(self, count: int) -> Attack:
        raise UserError(f"{self.name} runs the model itself, as often as it likes: leave out --attack-budget")

    @classmethod
    def setting_names(cls) -> list[str]:
        return []


@dataclass
class Passes:
    """The passes of single images through a model. `known`: whether all of them could be counted."""

    forwards: int = 0
    backwards: int = 0
    known: bool = True


def attack_batch(
    attack: WholeBatch,
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    eps: float,
    *,
    norm: str,
    seed: int,
    watch: Callable[[int], None] = lambda forwards: None,
) -> dict[str, Any]:
    """Run `attack` on one batch of images x (B, C, H, W), labels y (B,) and places `index` (B,) in the dataset.

    Returns `fell`, `distance`, `nonfinite` and `outside` as in `Verdicts`; `points` (F, C, H, W), those of the images
    that fell, in order; `forwards` and `backwards`, the passes of single images, and `counted`, whether these are all.
    For the images that stand, `margin` (B,) and `attempts` (S, C, H, W): the margin of the returned point, -inf for an
    image that fell or whose point is outside the ball, and the points of the others, in order. UserError if the attack
    raises, or does not return a tensor of the shape of x. `watch` is called after each forward pass with the number of
    those so far, of single images; what it raises is raised here.
    """
    batch_seed = int(rng.keys(seed, attack.name, index[:1])[0]) % 2**31
    net = copied(oracle.net)  # the attack may change its mode, weights or gradients
    stopped: list[Exception] = []

    def watched(forwards: int) -> None:
        try:
            watch(forwards)
        except Exception as error:  # the attack's own faults are told apart from it
            stopped.append(error)
            raise Interrupted("stopped") from error

    own_seed, code = rng.kept(batch_seed), others_code(f"attack {attack.name}")
    try:
        with own_seed, torch.enable_grad(), code, counting(net, watched) as passes:
            z = attack.points(net, x.clone(), y.clone(), eps, norm=norm, seed=seed)
    except (UserError, Interrupted):
        if stopped:
            raise stopped[0] from None
        raise
    if not isinstance(z, Tensor) or z.shape != x.shape:
        got = f"shape {'x'.join(map(str, z.shape))}" if isinstance(z, Tensor) else type(z).__name__
        shape = "x".join(map(str, x.shape))
        raise UserError(f"attack {attack.name} must return its points, a tensor of shape {shape}, not {got}")
    region = around(norm, x, torch.full(y.shape, eps, dtype=torch.float64, device=x.device))
    z = unrounded(region, z.detach().to(x))
    before, inside = oracle.forwards, region.contains(z)
    z = rows(inside, z, x)  # the others do not count, and the model may refuse them
    logits = oracle.logits(z, y)
    fell = wrong(logits, y) & inside
    if oracle.rejects:
        rounded = in_8_bit(region, z)
        better = inside & ~fell & wrong(oracle.logits(rounded, y), y) & region.contains(rounded)
        z, fell = rows(better, rounded, z), fell | better
    stands = inside & ~fell
    size = region.size(z.double() - x.double())
    return {
        "fell": fell.cpu(),
        "distance": torch.where(fell, size, torch.inf).cpu(),
        "points": z[fell].cpu(),
        "margin": torch.where(stands, margin(logits, y), -torch.inf).cpu(),
        "attempts": z[stands].cpu(),
        "nonfinite": int(((~logits.isfinite()).any(1) & inside).sum()),
        "outside": int((~inside).sum()) if attack.knows_eps() else 0,
        "forwards": passes.forwards + oracle.forwards - before,
        "backwards": passes.backwards,
        "counted": passes.known and passes.forwards > 0,  # without any, it ran parts of the model, or another one
    }


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of `attack_batch` on several batches, concatenated."""
    counts = {name: sum(part[name] for part in parts) for name in ("nonfinite", "outside", "forwards", "backwards")}
    names = ("fell", "distance", "points", "margin", "attempts")
    found = {name: torch.cat([part[name] for part in parts]) for name in names}
    return {**found, **counts, "counted": all(part["counted"] for part in parts)}


def copied(net: nn.Module) -> nn.Module:
    """A copy of `net`. UserError where it cannot be copied."""
    try:
        return copy.deepcopy(net)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise UserError(f"attacks from outside get a copy of the model, which has none: {one_line(error)}") from error


@contextmanager
def others_code(what: str) -> Iterator[None]:
    """Inside, prints go to stderr, and any error but a lack of memory is a UserError about `what`."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{what} failed: {type(error).__name__}: {one_line(error)}") from error


@contextmanager
def counting(net: nn.Module, watch: Callable[[int], None] = lambda forwards: None) -> Iterator[Passes]:
    """Inside, the passes of `net` are counted: forward, and backward from its outputs; `watch` is told the former.

    Not known are those of TorchScript, which takes no hooks, and inside of torch.func, which hides the batch.
    """
    passes = Passes()

    def backward(grad: Tensor) -> None:
        passes.backwards += len(grad)

    def forward(_: nn.Module, __: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(output):
            passes.known = False
            return
        passes.forwards += len(output)
        if output.requires_grad:
            output.register_hook(backward)
        watch(passes.forwards)

    if isinstance(net, torch.jit.ScriptModule):
        passes.known = False
        yield passes
        return
    handle = net.register_forward_hook(forward)
    try:
        yield passes
    finally:
        handle.remove()


def unrounded(region: Region, z: Tensor) -> Tensor:
    """Points z (B, C, H, W), where those that only rounding has put outside of the region are moved into it."""
    moved = region.project(z)
    near = (moved - z).abs().flatten(1).amax(1) <= ROUNDING
    return torch.where(near.view(-1, 1, 1, 1) & ~region.contains(z).view(-1, 1, 1, 1), moved, z)
