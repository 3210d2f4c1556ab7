"""Every dishonest defence of tests/support/defences.py is flagged, and no honest one is.

Some are judged by a short set of attacks on 64 images, beside those whose flags test_flags.py names; the long form is
AutoAttack on 128 images, on all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
from defences import DEFENCES
from torch import nn

import advbench
from advbench.attacks.autoattack import standard as autoattack
from advbench.attacks.square import Square
from advbench.engine.attack import Attack
from advbench.record import ESCALATED, Record

pytestmark = pytest.mark.usefixtures("whole_probes")

EPS = ["0", "0.05", "0.1", "0.2"]
TRUE_OF_ALL = {"small-n", "train-mode"}  # notes that say nothing of the defence
ASSERTED = [name for name, one in DEFENCES.items() if one.verdict not in ("open", "unseen")]
QUICK = [
    "Scale", "Clip", "Round2", "Thermometer", "Roulette", "FakeBorder", "GradMode", "CoarseHash", "Time",
    "SmallBatches", "Decoy", "Grey", "Corner", "bare", "Cool", "Abstain", "MaxMargin", "Prototypes",
]  # fmt: skip


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """The robust net of `make demo`."""
    out = tmp_path_factory.mktemp("runs") / "pgd-at"
    run = advbench.train("pgd-at", dataset="digits", arch="mlp", eps="0.1", device="cpu", out=out)
    return advbench.load_model(str(run)).net


def short() -> list[Attack]:
    """AutoAttack without FAB, with few steps."""
    ce, targeted, _, square = autoattack()
    assert isinstance(square, Square)
    return [replace(ce, steps=20), replace(targeted, steps=10), replace(square, n_queries=300)]


def measured(name: str, net: nn.Module, n: int, attack: str | Sequence[str | Attack]) -> Record:
    data = advbench.load_data("digits").subset(range(n))
    made = DEFENCES[name].make(copy.deepcopy(net), *data.batch(slice(None)))
    return advbench.evaluate(made, data, attack=attack, eps=EPS, device="cpu", processes=1).record


def check(name: str, net: nn.Module, n: int, attack: str | Sequence[str | Attack]) -> None:
    """Assert the verdict of the table."""
    record, verdict = measured(name, net, n, attack), DEFENCES[name].verdict
    found = {flag.name: flag.severity for flag in record.flags}
    doubted = {flag: severity for flag, severity in found.items() if severity != "note"}
    if verdict == "flagged":
        assert doubted, found
    elif verdict == "honest":
        assert not doubted, record.flags
    elif verdict == "note":
        assert found.keys() - TRUE_OF_ALL, found
    else:
        bare = measured("bare", net, n, attack)
        for point, other in zip(record.curve, bare.curve, strict=True):
            assert abs(point.robust - other.robust) <= 1, (point, other)


@pytest.mark.parametrize("name", QUICK)
def test_some_of_the_defences(name: str, net: nn.Module) -> None:
    check(name, net, 64, short())


@pytest.mark.long
@pytest.mark.parametrize("name", ASSERTED)
def test_all_defences(name: str, net: nn.Module) -> None:
    check(name, net, 128, "autoattack")


@pytest.mark.parametrize("attack", ["pgd", pytest.param("apgd-ce", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["Scale", pytest.param("Temp", marks=pytest.mark.long)])
def test_large_logits_are_flagged_where_every_loss_minds_them(name: str, attack: str, net: nn.Module) -> None:
    found = {flag.name: flag.severity for flag in measured(name, net, 64, attack).flags}
    assert set(found.values()) & {"suspect", "broken"}, found


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in ASSERTED if DEFENCES[name].verdict == "flagged"])
def test_quick_goes_on_to_autoattack_on_every_dishonest_one(name: str, net: nn.Module) -> None:
    flags = {flag.name for flag in measured(name, net, 128, "quick").flags}
    assert ESCALATED in flags, flags
