"""The measurement on a card, rehearsed: its sections, its budget, and a table that is whole at any moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from advbench.checkpoint import load_model
from advbench.checkpoint.weights import save_weights
from advbench.data import load
from advbench.engine.verdicts import Work
from advbench.errors import UserError
from advbench.evaluator import Settings
from advbench.evaluator import slots as slots_module
from advbench.models import build

BENCH = Path(__file__).parent / "bench"
Row = tuple[str, ...]


@pytest.fixture(scope="module")
def cuda() -> Iterator[ModuleType]:
    """tests/bench/bench_cuda.py, whose folder is on the path as where it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import bench_cuda

        yield bench_cuda
        for name, module in [*sys.modules.items()]:
            if str(getattr(module, "__file__", None)).startswith(str(BENCH)):
                del sys.modules[name]


class Clock:
    """Shows what jobs of `Slow` took."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def job(self, name: str, seconds: float, rows: int = 1, error: type[Exception] | None = None) -> Any:
        from cuda_table import Job

        def run(left: Callable[[], float]) -> Iterator[Row]:
            for number in range(rows):
                self.now += seconds
                yield f"{name}.{number}", f"{left():g} left", ""
            if error is not None:
                raise error(f"{name} ends")

        return Job(name, run)


def measured(clock: Clock, budget: float, *sections: tuple[str, float, list[Any]]) -> list[Row]:
    from cuda_table import Section, measure

    rows: list[Row] = []
    measure([Section(*section) for section in sections], budget, clock, lambda *row: rows.append(row))
    return rows


def test_a_section_has_its_share_and_says_what_it_left_out(cuda: ModuleType) -> None:
    clock = Clock()
    rows = measured(
        clock, 200.0,
        ("a", 30, [clock.job("x", 20), clock.job("y", 50), clock.job("z", 1), clock.job("w", 1)]),
        ("b", 60, [clock.job("x", 10)]),
        ("c", 10, [clock.job("x", 50, rows=2), clock.job("y", 50)]),
    )  # fmt: skip
    assert rows == [
        ("a", "x.0", "40 left", ""),
        ("a", "y.0", "-10 left", ""),  # under way: it was started in time
        ("a", "cut", "", "out of time, not measured: z; w"),
        ("b", "x.0", "110 left", ""),
        ("c", "x.0", "70 left", ""),  # all that is left, not its tenth
        ("c", "x.1", "20 left", ""),
        ("c", "y.0", "-30 left", ""),
    ]


def test_with_no_time_left_every_section_says_so(cuda: ModuleType) -> None:
    clock = Clock()
    rows = measured(clock, 10.0, ("a", 1, [clock.job("x", 12)]), ("b", 9, [clock.job("y", 1)]))
    assert rows == [("a", "x.0", "-11 left", ""), ("b", "cut", "", "out of time, not measured: y")]


def test_a_job_that_fails_or_is_cut_is_a_row_and_the_next_one_runs(cuda: ModuleType) -> None:
    from cuda_table import Cut

    clock = Clock()
    jobs = [clock.job("x", 1, error=RuntimeError), clock.job("y", 1, error=Cut), clock.job("z", 1)]
    rows = measured(clock, 100.0, ("a", 1, jobs))
    failed, cut = (row[1:] for row in rows if not row[1].endswith(".0"))
    assert failed[:2] == ("x", "failed") and failed[2].startswith("RuntimeError: x ends [test_bench_cuda.py line ")
    assert cut == ("y", "cut", "y ends")
    assert rows[-1][1] == "z.0"


def tables(path: Path) -> list[list[Row]]:
    """The rows of each table in a file; every line of a table has the cells of its head."""
    found: list[list[Row]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("| section |"):
            found.append([])
        elif line.startswith("|"):
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            assert len(cells) == 4
            found[-1].append(cells)
    return [rows[1:] for rows in found]


def test_every_row_is_on_the_disk_at_once_and_tables_follow_each_other(cuda: ModuleType, tmp_path: Path) -> None:
    from cuda_table import Table

    path = tmp_path / "speed.md"
    for run in ("one", "two"):
        table = Table(path, "# Title", f"about {run}")
        for number in range(2):
            table.row("card", f"{run} {number}", "1 | 2\n3", "")
            assert tables(path)[-1][-1] == ("card", f"{run} {number}", "1 / 2 3", "")
    assert path.read_text().count("# Title") == 1
    assert [len(rows) for rows in tables(path)] == [2, 2]


def test_parts_are_shares_of_all_searches(cuda: ModuleType) -> None:
    work = Work(slot_steps=2000, useful=1500, attacks=5, verification=1, recheck=3, host=1)
    assert list(cuda.cuda_autoattack.parts_of("ours", work)) == [
        ("ours: attacks", "5.0 s", "50% of the searches"),
        ("ours: verification", "1.0 s", "10% of the searches"),
        ("ours: recheck", "3.0 s", "30% of the searches"),
        ("ours: host", "1.0 s", "10% of the searches"),
        ("ours: useful slot-steps", "75.0%", "of 2,000"),
    ]
    shared = list(cuda.cuda_autoattack.parts_of("cut at once", Work(), together=True))
    assert len(shared) == 4 and shared[0][2] == "0% of the searches of all processes"


def test_tensor_operations_are_timed_outside_of_steps_without_what_timing_adds(cuda: ModuleType) -> None:
    from cuda_host import CALIBRATION, Operations

    now, tick = 0.0, 0.0

    def clock() -> float:
        nonlocal now
        now += tick
        return now

    x, operations = torch.ones(2), Operations(clock)
    assert operations.added == 0
    tick = 1.0
    with operations:
        x.add(1)
        with operations.paused():
            x.add(1)
        x.add(1)
    assert operations.seconds == 2
    assert Operations(clock).added == pytest.approx(1 - 1 / CALIBRATION)  # each look at this clock takes a second


@pytest.fixture(scope="module")
def pack(cuda: ModuleType, taught: Callable[[nn.Module], nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cuda_pack import pack

    folder = tmp_path_factory.mktemp("bench")
    net = taught(build("linear", num_classes=10, in_channels=1, image_size=8, seed=0))
    save_weights(net, folder / "net.safetensors")
    size = pack(str(folder / "net.safetensors"), None, "digits", folder / "pack")
    assert size == sum(file.stat().st_size for file in (folder / "pack").iterdir())
    return folder / "pack"


@pytest.mark.parametrize(("seconds", "images"), [([9, -9], ["1 to 4", "5 to 8"]), ([-9], ["1 to 4"])])
def test_the_reference_ends_where_no_time_is_left_after_a_batch(
    cuda: ModuleType, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: list[float],
    images: list[str],
) -> None:  # fmt: skip
    from cuda_bench import Bench, Sizes

    class Nothing:
        """Stands in for AutoAttack, and fells none."""

        def __init__(self, *given: Any, **more: Any) -> None: ...

        def run_standard_evaluation(self, x: Any, y: Any, batch_size: int) -> Any:
            return x, y

    monkeypatch.setattr("pyautoattack.AutoAttack", Nothing)
    data = load(f"npz:{pack / 'images.npz'}", "test")
    model = load_model(str(pack / "weights.safetensors"), dataset=data)
    bench = Bench(model, data, "0.1", torch.device("cpu"), Sizes(reference=(4, 8)), tmp_path)
    (job,) = cuda.cuda_autoattack.reference_jobs(bench, cuda.cuda_autoattack.Ours(), exact=False)
    left = iter(seconds)
    assert [row[0].split("images ")[1] for row in job.run(lambda: next(left))] == images


@pytest.mark.slow
def test_the_rehearsal_has_all_sections_in_order(
    cuda: ModuleType, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that stands still, so that nothing is cut."""
    monkeypatch.setattr(slots_module, "TIMED_SECONDS", 1e-4)
    out = tmp_path / "speed.md"
    given = ["--device", "cpu", "--pack", str(pack), "--eps", "0.6", "-n", "20", "--out", str(out)]
    cuda.main(given, clock=lambda: 0.0)
    (rows,) = tables(out)
    assert list(dict.fromkeys(row[0] for row in rows)) == list(cuda.SECONDS)
    assert not [row for row in rows if row[1] == "cut" or row[2] in ("cut", "failed")]
    measured = {row[1]: row for row in rows}
    assert {"host, square, 128 slots", "ours, not compiled, mlp, batch 32", "plain loop, mlp, batch 32"} <= {*measured}
    (graphs,) = (row for row in rows if row[1] == "steps that are graphs")
    assert "ms in tensor operations" in measured["host, square, 128 slots"][3]
    assert "apgd-t" in graphs[3] and "square" in graphs[3]
    ours, whole = measured["advbench, 16 images"], measured["advbench, 20 images"]
    parts = [measured[f"advbench, 16 images: {part}"] for part in ("attacks", "recheck", "verification", "host")]
    assert all(float(row[2].split()[0]) >= 0 for row in (ours, whole, *parts))
    assert 0 < float(measured["advbench, 16 images: useful slot-steps"][2].rstrip("%")) <= 100
    theirs = [row for row in rows if row[0] == "reference"]
    assert len(theirs) == 2 and all("felled by ours alone 0, by it alone 0" in row[3] for row in theirs)
    assert not list(tmp_path.glob("*.journal*"))


def test_a_measurement_that_is_cut_goes_on_where_it_stopped(
    cuda: ModuleType, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"steps": 5, "n_queries": 20}
    monkeypatch.setattr(cuda.cuda_autoattack, "Settings", partial(Settings, attack_settings=few))
    folder = tmp_path / "new"
    out = folder / "speed.md"
    given = ["--device", "cpu", "--pack", str(pack), "--eps", "0.06", "-n", "6", "--out", str(out)]

    class Ticking:
        """Moves on by a second at each look."""

        now = 0.0

        def __call__(self) -> float:
            self.now += 1
            return self.now

    cuda.main([*given, "--sections", "whole", "--budget", "30"], clock=Ticking())
    (cut,) = tables(out)
    assert cut[-1][2:] == ("cut", "out of time; the next measurement goes on from here")
    assert list(folder.glob("*.journal"))
    cuda.main([*given, "-n", "5", "--sections", "whole"], clock=lambda: 0.0)  # another question, apart from that one
    assert tables(out)[-1][0][1] == "advbench, 5 images" and list(folder.glob("*-6-1.journal"))
    cuda.main([*given, "--sections", "whole", "--budget", "1e9"], clock=Ticking())
    whole = tables(out)[-1]
    assert whole[0][1] == "advbench, 6 images" and whole[0][3].endswith("resumed")
    assert not list(folder.glob("*.journal*"))


def test_each_net_has_a_pack_of_its_own() -> None:
    """Else the weights of the one would be measured under the name of the other."""

    def folder(net: str) -> str:
        make = ["make", "--dry-run", "--silent", "pack-cuda", f"BENCH_NET={net}"]
        said = subprocess.run(make, cwd=BENCH.parents[1], capture_output=True, text=True, check=True).stdout
        return said.rpartition("--to ")[2].strip()

    folders = [folder(net) for net in ("pyautoattack:model_test", "demo/one", "demo/other")]
    assert len({*folders}) == 3 and all(one.startswith(".bench-cuda/") and ":" not in one for one in folders)


@pytest.mark.parametrize(
    ("words", "error"),
    [(["--sections", "cards"], "unknown section cards: choose from card, steps"),
     (["--device", "cuda"], "--device cpu rehearses"),
     (["--device", "cpu", "--eps", "abc"], "eps 'abc' is not a size"),
     (["--device", "cpu", "-n", "0"], "-n is 0: it must be at least 1")],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    cuda: ModuleType, words: list[str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=error):
        cuda.main(words)
