"""The training state is loaded bit for bit, or refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.checkpoint import load_train_state, save_train_state
from advbench.errors import UserError

FILE = Path("train_state") / "state.bin"


def step(net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    net(torch.randn(4, 3)).square().sum().backward()
    optimiser.step()


def test_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    step(net, optimiser)
    state = {
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "epoch": 3,
        "best": {"accuracy": 0.5, "note": None, "seen": [1, (2, 3)], "done": False},
    }
    save_train_state(tmp_path, state)
    step(net, optimiser)
    wanted = copy.deepcopy(net.state_dict())

    found = load_train_state(tmp_path)
    assert found["epoch"] == 3 and found["best"] == state["best"]
    other = nn.Linear(3, 2)
    other.load_state_dict(found["net"])
    resumed = torch.optim.Adam(other.parameters(), lr=0.1)
    resumed.load_state_dict(found["optimiser"])
    torch.set_rng_state(found["rng"])
    step(other, resumed)
    assert all(torch.equal(value, wanted[key]) for key, value in other.state_dict().items())


def test_damage_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be resumed: train_state/state\.bin is missing"):
        load_train_state(tmp_path)
    save_train_state(tmp_path, {"w": torch.zeros(100)})
    whole = (tmp_path / FILE).read_bytes()
    for damaged in (whole[:-1], whole[:200] + b"x" + whole[201:], b"", b"f" * 64):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(UserError, match=r"state.bin is damaged"):
            load_train_state(tmp_path)


def test_a_failed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_train_state(tmp_path, {"epoch": 1})
    with monkeypatch.context() as patch:

        def full(*_args: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            save_train_state(tmp_path, {"epoch": 2})
    assert load_train_state(tmp_path) == {"epoch": 1}
    assert [file.name for file in (tmp_path / "train_state").iterdir()] == ["state.bin"]


class Sub(Tensor):
    pass


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [1, {1, 2}]}}, r"state.a.b\[1\] is a set"),
        ({"a": np.float64(1)}, "state.a is a float64"),
        ({"a": np.zeros(2)}, "state.a is a ndarray"),
        ({"a": Path("x")}, "state.a is a PosixPath"),
        ({(1, 2): 3}, r"has the key \(1, 2\)"),
        ({"a": torch.zeros(1).as_subclass(Sub)}, "state.a is a Sub"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(state: Any, where: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=where):
        save_train_state(tmp_path, state)
    assert not (tmp_path / FILE).exists()
