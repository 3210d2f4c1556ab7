"""The action and the workflow to copy, followed in an empty git repository as docs/how-to/ci.md says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from actions import ROOT, Runner, read
from safetensors.torch import load_file, save_file

from advbench import train
from advbench.version import __version__

PYTHON = """#!/bin/bash
echo "$@" > {asked}
printf '#!/bin/bash\\nexec env PYTHONPATH={root} {python} -m advbench "$@"\\n' > {here}/advbench
chmod +x {here}/advbench
"""
QUICK = {"attack": "apgd-ce", "eps": "0,0.1", "n": 100, "evaluate-args": "--set steps=10 --probes off"}
QUICK |= {"compare-args": "--allow-flags not-probed"}


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a good net, and the same with noise: a worse one."""
    folder = tmp_path_factory.mktemp("nets")
    settings = {"train_n": 512, "validation.n": 64, "inner.steps": 2}
    asked: dict[str, Any] = {"dataset": "digits", "arch": "mlp", "eps": "0.1", "epochs": 12, "device": "cpu"}
    run = train("pgd-at", **asked, settings=settings, out=folder / "run")
    found = {"good": run / "model.safetensors", "worse": folder / "worse.safetensors"}
    draw = torch.Generator().manual_seed(0)
    worse = {
        name: value + 0.5 * value.std() * torch.randn(value.shape, generator=draw) if value.ndim > 1 else value
        for name, value in load_file(found["good"]).items()
    }
    save_file(worse, found["worse"])
    return found


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, text=True, capture_output=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    return folder


@pytest.fixture
def run(tmp_path: Path, repository: Path, forked: str) -> Callable[..., tuple[int, Path, Runner]]:
    """Run the job of the workflow to copy, with some inputs changed: its exit code, what it uploads, the runner."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    python = bin_folder / "python"
    asked = tmp_path / "asked"
    python.write_text(PYTHON.format(asked=asked, root=ROOT, python=forked, here=bin_folder))
    python.chmod(0o755)

    def job(**changes: Any) -> tuple[int, Path, Runner]:
        place = tmp_path / "runner"  # the same for each run, as for several uses in one job
        place.mkdir(exist_ok=True)
        (steps,) = (one["steps"] for one in read(repository / ".github/workflows/robustness.yml")["jobs"].values())
        gate = next(step for step in steps if step.get("id") == "advbench")
        assert gate["uses"] == f"OWNER/advbench@v{__version__}"
        assert steps[-1]["with"]["path"] == "${{ steps.advbench.outputs.record }}"
        runner = Runner(repository, place, bin_folder)
        given = {**gate["with"], **QUICK, **{name.replace("_", "-"): value for name, value in changes.items()}}
        code, outputs = runner.composite(read(ROOT / "action.yml"), given, ROOT)
        assert asked.read_text() == f"-m pip install {ROOT}\n"
        return code, Path(outputs["record"]), runner

    return job


@pytest.mark.slow
def test_a_gate_from_nothing(
    repository: Path, nets: dict[str, Path], run: Callable[..., tuple[int, Path, Runner]], tmp_path: Path
) -> None:
    workflows = repository / ".github/workflows"
    workflows.mkdir(parents=True)
    shutil.copy(ROOT / "docs/how-to/robustness.yml", workflows)
    weights = repository / "weights.safetensors"
    shutil.copy(nets["good"], weights)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "a model")

    junit = tmp_path / "junit.xml"
    code, first, runner = run(junit=junit)  # there is no baseline yet
    assert code == 2 and not junit.exists() and "there is no file baseline.json" in runner.log
    assert runner.summary == "### No verdict: the log says why\n"
    for name in ("baseline.json", "baseline.npz"):
        shutil.copy(first / name, repository)
    assert git(repository, "status", "--porcelain") == "?? baseline.json\n?? baseline.npz\n"
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "the baseline")

    code, record, runner = run(junit=junit)
    assert code == 0 and record != first and (first / "baseline.json").exists(), runner.log
    assert runner.summary.startswith("### No regression against weights.safetensors")
    assert runner.summary == (record / "report.md").read_text()
    assert "| model | curve | 0 | 0.1 |" in runner.summary and "Protocol: 100 images of digits" in runner.summary
    assert ElementTree.parse(junit).getroot().get("failures") == "0"

    shutil.copy(nets["worse"], weights)
    code, record, runner = run()
    assert code == 1 and runner.summary.startswith("### Regression: weights.safetensors"), runner.log

    code, record, runner = run(evaluate_args="--set steps=10 --probes off --subset random:7")
    assert code == 2 and "different images" in runner.summary and "No verdict" in runner.summary

    git(repository, "checkout", "--quiet", "weights.safetensors")
    assert git(repository, "status", "--porcelain", "--ignored") == ""


def test_inputs_are_no_script(repository: Path, run: Callable[..., tuple[int, Path, Runner]]) -> None:
    workflows = repository / ".github/workflows"
    workflows.mkdir(parents=True)
    shutil.copy(ROOT / "docs/how-to/robustness.yml", workflows)
    evil = "$(touch hurt) `touch hurt`\"; touch hurt; #' * \\"
    code, _, runner = run(model=evil, arch=evil, mean="", evaluate_args=evil, compare_args=evil)
    assert code == 2 and not (repository / "hurt").exists(), runner.log
    assert "error: " in runner.log and "Traceback" not in runner.log
