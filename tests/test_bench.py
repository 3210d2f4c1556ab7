"""The report of the benches: each run writes its own section and leaves the others. And that benches run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advbench.checkpoint.weights import save_weights
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.evaluate import bare
from advbench.models import build

BENCH = Path(__file__).parent / "bench"
Taught = Callable[[nn.Module], nn.Module]


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of the benches is on the path, as where they are run."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(str(BENCH)):
            del sys.modules[name]


@pytest.fixture
def net(taught: Taught) -> nn.Module:
    return taught(build("linear", num_classes=10, in_channels=1, image_size=8, seed=0)).eval()


@pytest.fixture
def data() -> Dataset:
    return load("digits", "test").subset(range(24))


def test_bf16_recheck_counts_who_stands_by_each_way(
    benches: None, net: nn.Module, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bf16_recheck

    attacks, _ = resolve(["apgd-ce", "square"], {"n_queries": 20}, norm="linf", classes=10)
    few: Any = (resolve(["apgd-ce"], {"steps": 4}, norm="linf", classes=10)[0],)
    monkeypatch.setattr(bf16_recheck, "recheck_attacks", lambda attacks, **given: few)
    far, standing, notes = bf16_recheck.measure(bare(net, data), data, attacks, "linf", 0.05)
    assert far.shape == (24,) and 0 < standing["fp32"].sum() < 24
    assert not (standing["recheck of all"] & ~standing["bf16"]).any()
    assert f"bf16 {standing['bf16'].sum()}," in "\n".join(bf16_recheck.table(far, standing, notes))


def test_parity_attacks_measures_ours(benches: None, net: nn.Module, data: Dataset) -> None:
    import parity_attacks

    x, y = data.batch(slice(0, len(data)))
    wrong = net(x).argmax(1) != y
    distance = parity_attacks.ours(net, data, "sigma-zero", "l0", {"steps": 20}, 0)
    assert torch.equal(torch.from_numpy(distance == 0), wrong) and (distance <= 64).sum() > 12


def test_parity_tells_both_engines_and_goes_on(
    benches: None, net: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import parity

    save_weights(net, tmp_path / "net.safetensors")
    asked = ["--model", str(tmp_path / "net.safetensors"), "--dataset", "digits", "-n", "6", "--eps", "0.05"]
    asked += ["--attack", "apgd-ce", "--seeds", "0", "--out", str(tmp_path / "found")]
    told = []
    for _ in range(2):
        parity.main(asked)
        told.append(capsys.readouterr().out.rpartition("robust images at each eps:")[2])
    assert told[0] == told[1] and "own seed 0 / reference seed 0: 0.05: (0, 0)" in told[0]


def test_a_run_replaces_its_own_section_alone(benches: None, tmp_path: Path) -> None:
    import report

    file, cells = tmp_path / "new" / "speed.md", report.table([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}])
    assert cells == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
    report.write(file, "# Title\n", "pgd: lenet5", f"first\n\n{cells}")
    report.write(file, "# Title\n", "training: lenet5", "second\n")
    report.write(file, "# New title\n\nwith ## two lines\n", "pgd: lenet5", "again\n")
    wanted = "# New title\n\nwith ## two lines\n\n## pgd: lenet5\n\nagain\n\n## training: lenet5\n\nsecond\n"
    assert file.read_text(encoding="utf-8") == wanted


def test_the_committed_table_is_in_sections_of_the_benches(benches: None) -> None:
    import report

    text = (Path(__file__).parents[1] / "leaderboards/speed-cpu.md").read_text(encoding="utf-8")
    assert text.startswith(report.SPEED) and text.count("\n## ") > 5
