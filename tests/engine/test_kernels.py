"""fp32 is exact during an attack, whatever the user has set by PyTorch's old and new switches, and left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from advbench.engine.kernels import _switches, exact_kernels

B = torch.backends
NEW = hasattr(B.cuda.matmul, "fp32_precision")  # from PyTorch 2.9 on
newer = pytest.mark.skipif(not NEW, reason="PyTorch before 2.9 has the old switches only")
CPU = torch.device("cpu")


def old_ones() -> dict[str, Callable[[], Any]]:
    """How a model may read the old switches."""
    return {
        "cudnn.allow_tf32": lambda: B.cudnn.allow_tf32,
        "matmul.allow_tf32": lambda: B.cuda.matmul.allow_tf32,
        "matmul precision": torch.get_float32_matmul_precision,
    }


def state() -> dict[str, Any]:
    """The value of every switch; "raises" where it cannot be read."""
    found: dict[str, Any] = {}
    new = {"": B, "cudnn": B.cudnn, "conv": B.cudnn.conv, "rnn": B.cudnn.rnn, "matmul": B.cuda.matmul} if NEW else {}
    new |= {"mkldnn.matmul": B.mkldnn.matmul, "mkldnn.conv": B.mkldnn.conv} if NEW else {}
    readers = {**old_ones(), **{name: lambda owner=owner: owner.fp32_precision for name, owner in new.items()}}
    for name, read in readers.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "raises"
    return found


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = [(switch, switch.read()) for switch in _switches()]
    more = B.fp32_precision if NEW else None
    yield
    if NEW:
        B.fp32_precision = more
    for switch, value in before:
        switch.write(value)


def _set(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


SETS = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old cudnn": _set(B.cudnn, "allow_tf32", False),
    "old matmul": _set(B.cuda.matmul, "allow_tf32", True),
}
NEWER = {
    "everything": lambda: setattr(B, "fp32_precision", "tf32"),
    "matmul": lambda: setattr(B.cuda.matmul, "fp32_precision", "tf32"),
    "convolutions": lambda: setattr(B.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("name", [*SETS, *(pytest.param(name, marks=newer) for name in NEWER)])
def test_fp32_is_exact_inside_and_every_switch_as_before_after(name: str) -> None:
    {**SETS, **NEWER}[name]()
    before = state()
    with exact_kernels(CPU):
        inside = state()
        assert B.cudnn.deterministic and not B.cudnn.benchmark
        if NEW:
            assert {inside[part] for part in ("conv", "rnn", "matmul", "mkldnn.matmul", "mkldnn.conv")} == {"ieee"}
        for old in old_ones():  # a model may read what it could read outside
            assert inside[old] != "raises" or before[old] == "raises"
            assert inside[old] in (False, "highest", "raises")
    assert state() == before


def test_a_model_may_use_the_old_switches_in_its_forward_pass() -> None:
    with exact_kernels(CPU), B.cudnn.flags(enabled=True, allow_tf32=False):
        assert B.cudnn.allow_tf32 is False
    assert B.cudnn.allow_tf32 is True


def test_the_callers_autocast_is_off() -> None:
    a = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with exact_kernels(CPU):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
