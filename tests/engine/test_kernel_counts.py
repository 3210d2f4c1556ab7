"""A turn of each attack on CUDA neither waits for the device nor copies from the host, and launches few kernels.

The turn runs on the fake tensors of `fake_cuda`, in all slots, and includes all that the engine does but the model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import proofs
import pytest
import torch
from fake_cuda import Watched, needed, zero_gradients
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from advbench import rng
from advbench.engine.attack import Attack, Problem
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.engine.slots import Slots
from advbench.errors import UserError
from advbench.registry import entries, find
from advbench.threat import around

pytestmark = needed
SLOTS, CLASSES, SHAPE = 4096, 10, (3, 32, 32)
# The most kernels by attack and norm: what was counted, rounded up to tens, as releases of PyTorch differ by a few.
MOST = {
    "apgd-ce": {"linf": 70, "l2": 180, "l1": 200, "fourier-linf": 630},
    "apgd-dlr": {"linf": 80, "l2": 190, "l1": 210, "fourier-linf": 640},
    "apgd-t": {"linf": 80, "l2": 190, "l1": 210, "fourier-linf": 640},
    "cw-l2": {"l2": 100},
    "ddn": {"l2": 160},
    "deepfool": {"linf": 80, "l2": 80},
    "fab": {"linf": 190, "l2": 180, "l1": 140},
    "fab-t": {"linf": 160, "l2": 160, "l1": 110},
    "feature-pgd": {"linf": 50, "l2": 110, "l1": 180, "fourier-linf": 330},
    "fgsm": {"linf": 50, "l2": 110, "l1": 180, "fourier-linf": 340},
    "fgsm-rs": {"linf": 50, "l2": 110, "l1": 180, "fourier-linf": 340},
    "fmn": {"linf": 100, "l2": 140, "l1": 200},
    "hopskipjump": {"linf": 230, "l2": 270},
    "mi-fgsm": {"linf": 50, "l2": 110, "l1": 180, "fourier-linf": 340},
    "multi-targeted": {"linf": 80, "l2": 180, "l1": 200, "fourier-linf": 630},
    "multi-task": {"linf": 70, "l2": 120, "l1": 190, "fourier-linf": 350},
    "n-fgsm": {"linf": 50},
    "odi-margin": {"linf": 120, "l2": 170},
    "pgd": {"linf": 50, "l2": 110, "l1": 180, "fourier-linf": 340},
    "pma": {"linf": 70, "l2": 130},
    "rays": {"linf": 80},
    "rfgsm": {"linf": 50},
    "sigma-zero": {"l0": 90},
    "square": {"linf": 80, "l2": 200, "l1": 240},
    "transfer": {"linf": 80, "l2": 190, "l1": 210, "fourier-linf": 640},
}


def attacks() -> Iterator[Any]:
    """Every registered attack with its own settings, in every norm it has a form for."""
    for name in entries("attacks"):
        made = find("attacks", name).create(**({"source": "-"} if name == "transfer" else {}))
        for norm in () if isinstance(made, tuple) else proofs.NORMS:
            try:
                yield pytest.param(made.for_model(norm, CLASSES), norm, id=f"{name}-{norm}")
            except UserError:
                continue


class Net(nn.Module):
    """Logits, and no kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :CLASSES]


@pytest.fixture(autouse=True)
def _own_tables() -> Iterator[None]:
    """The tables that attacks cache hold fake tensors of one test."""

    def clear() -> None:
        for module in [module for name, module in sys.modules.items() if name.startswith("advbench.attacks.")]:
            for cached in vars(module).values():
                if hasattr(cached, "cache_clear"):
                    cached.cache_clear()

    clear()
    yield
    clear()


def turn(attack: Attack, norm: str, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """What a search does in a turn of `attack`, after a first turn, which makes the tables."""
    with FakeTensorMode(), zero_gradients(monkeypatch):
        x = torch.rand(SLOTS, *SHAPE, device="cuda")
        row = torch.zeros(SLOTS, dtype=torch.int64, device="cuda")
        region = around(norm, x, torch.ones(SLOTS, dtype=torch.float64, device="cuda"))
        reference = torch.zeros(SLOTS, CLASSES, device="cuda")
        p = Problem(region, row, row, rng.keys(0, attack.name, row), row, reference, row)
        search: Any = Search.__new__(Search)
        search.attack, search.oracle = attack, Oracle(Net(), slots=SLOTS)
        search.minimum_norm, search.keep_attempts = attack.minimum_norm, False
        search.keep_margins = False  # in bf16 they are kept, by five kernels more
        each = row.float()
        slots = Slots(p, attack.start(p), torch.empty_like(x), row.bool(), each, each, each[:, None], each)
        slots = search._step(slots)
        with Watched() as seen:
            search.attack.done(search._step(slots).state)
    return seen


@pytest.mark.parametrize(("attack", "norm"), list(attacks()))
def test_a_turn_does_not_wait_and_launches_few_kernels(
    attack: Attack, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = turn(attack, norm, monkeypatch)
    assert seen.waits == []
    assert seen.kernels.total() <= MOST[attack.name][norm], seen.kernels.most_common()


def test_what_waits_or_copies_and_every_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above could not fail."""
    attack = find("attacks", "pgd").create().for_model("linf", CLASSES)
    plain, step = turn(attack, "linf", monkeypatch), type(attack).step

    def copies(self: Any, p: Problem, s: Any, a: Any) -> Any:
        torch.zeros(3).to(p.y.device)
        after = step(self, p, s, a)
        return replace(after, query=after.query + 1)

    monkeypatch.setattr(type(attack), "step", copies)
    seen = turn(attack, "linf", monkeypatch)
    assert seen.waits == ["_to_copy between host and device"]
    assert seen.kernels - plain.kernels == {"_to_copy": 1, "add": 1}
    assert seen.moved - plain.moved >= 2 * 4 * SLOTS * 3 * 32 * 32  # the query is read and written

    def waits(self: Any, p: Problem, s: Any, a: Any) -> Any:
        return step(self, p, s, a) if a.wrong.any() else s

    monkeypatch.setattr(type(attack), "step", waits)
    with pytest.raises(DataDependentOutputException):
        turn(attack, "linf", monkeypatch)
