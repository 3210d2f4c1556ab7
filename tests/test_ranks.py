"""Processes that join exchange values; a process alone needs no torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from advbench import ranks
from advbench.errors import UserError

JOB = """
import json, torch
from advbench import ranks
from advbench.errors import UserError
assert (ranks.rank(), ranks.world()) == (0, 1)
with ranks.joined():
    me = ranks.rank()
    mean = [torch.full((2, 3), float(me)), torch.full((), 10.0 * me, dtype=torch.float64)]
    ranks.average_(mean)
    def fail(): raise UserError(f"rank {me} cannot")
    try:
        ranks.first(fail)
    except UserError as error:
        said = str(error)
    with ranks.joined():
        again = ranks.world()
    told = {
        "rank": me, "world": ranks.world(), "again": again, "said": said,
        "gathered": ranks.gather_objects({"rank": me}), "first": ranks.first(lambda: f"from {me}"),
        "any": ranks.any_of(me == 1, False, True),
        "mean": [value.tolist() for value in mean], "whole": ranks.whole(torch.tensor([[me, 7]])).tolist(),
    }
assert (ranks.rank(), ranks.world()) == (0, 1)
print(json.dumps(told))
"""


def test_two_processes_exchange_values(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", JOB],
            env={**shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for number, process in enumerate(started):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1]) == {
            "rank": number, "world": 2, "again": 2, "said": "rank 0 cannot",
            "gathered": [{"rank": 0}, {"rank": 1}], "first": "from 0", "any": [True, False, True],
            "mean": [[[0.5] * 3] * 2, 5.0], "whole": [[0, 7], [1, 7]],
        }  # fmt: skip


def test_a_process_alone_loads_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from advbench import ranks\nwith ranks.joined(): pass\nassert 'torch' not in sys.modules"
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    assert subprocess.run([sys.executable, "-c", code], env=clean, timeout=60).returncode == 0
    assert ranks.gather_objects(3) == [3] and ranks.first(lambda: 4) == 4 and ranks.any_of(True, False) == (True, False)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("-1", "2"), ("0", "")])
def test_an_environment_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, rank: str, world: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match="start with torchrun"), ranks.joined():
        pass
