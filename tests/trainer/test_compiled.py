"""torch.compile changes the time of a run, not its numbers; where it fails, the run goes on and says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from advbench.checkpoint import read_card
from advbench.recipe import Recipe
from advbench.trainer import train
from advbench.trainer.session import Session

Make = Callable[..., Recipe]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, while it traces
@pytest.mark.parametrize("method", ["pgd-at", "act"])
def test_compiling_gives_the_same_run(recipe: Make, tmp_path: Path, method: str) -> None:
    for name in ("off", "aot_eager"):
        train(recipe(method, f"compile={name}", "epochs=1", "awp.gamma=0.01"), tmp_path / name, device="cpu")
    a, b = (load_file(tmp_path / name / "last.safetensors") for name in ("off", "aot_eager"))
    for key, weight in a.items():
        torch.testing.assert_close(b[key], weight, rtol=1e-4, atol=1e-4)
    plain, made = (read_card(tmp_path / name).cost for name in ("off", "aot_eager"))
    assert (plain["compile"], made["compile"]) == ("off", "aot_eager")
    assert [made[key] for key in ("forwards", "backwards")] == [plain[key] for key in ("forwards", "backwards")]


def test_what_cannot_be_compiled_goes_on_without(recipe: Make) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler here")

    session = Session(recipe("pgd-at", "compile=aot_eager"), torch.device("cpu"))
    (net,) = session.compiled
    net.call = torch.compile(net.net._call_impl, backend=broken)
    with pytest.warns(UserWarning, match="continues without torch.compile.*no compiler here"):
        session.step(session.order())
    assert "no compiler here" in session.compile_status and session.compile_status.startswith("off")
    session.step(session.order())
    assert session.means()[0]["loss"] > 0


def test_copies_and_second_derivatives_are_not_compiled(recipe: Make) -> None:
    session = Session(recipe("pgd-at", "compile=aot_eager", "average.name=ema"), torch.device("cpu"))
    assert session.nets.f._compiled_call_impl is session.compiled[0]
    assert session.deployed._compiled_call_impl is None
    assert copy.deepcopy(session.nets.f)._compiled_call_impl is None
    assert Session(recipe("great", "compile=aot_eager", arch="mlp"), torch.device("cpu")).compile_status == "off"


def test_attacks_ask_weights_for_no_gradient(recipe: Make) -> None:
    session = Session(recipe("pgd-at", "compile=aot_eager"), torch.device("cpu"))
    seen: list[bool] = []
    f = session.nets.f
    x = torch.rand(2, 1, 8, 8)

    def objective(z: torch.Tensor) -> torch.Tensor:
        seen.append(any(weight.requires_grad for weight in f.parameters()))
        return z.flatten(1).sum(1)

    session.nets.key = torch.zeros(2, dtype=torch.int64)
    session.tools.attack(objective, x, torch.zeros(2, dtype=torch.int64))
    assert seen == [False, False] and all(weight.requires_grad for weight in f.parameters())
