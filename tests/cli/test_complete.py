"""What the shell offers after Tab: quick, of every kind of name, and joined again where bash breaks words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advbench.cli import main
from advbench.cli.complete import VARIABLE
from advbench.cli.options import STATISTICS
from advbench.models.base import STATISTICS as KNOWN_STATISTICS

_MAIN = "import sys; from advbench.cli import main; main(); sys.exit('torch' in sys.modules or 'rich' in sys.modules)"


def asked(line: str) -> dict[str, str]:
    """What bash sets at the end of a line, whose words it breaks at ":" and "="."""
    broken = line.replace(":", " : ").replace("=", " = ").split(" ")
    typed = [word for word in broken if word] + ([""] if line.endswith(" ") else [])
    return {"COMP_WORDS": "\n".join(typed), "COMP_CWORD": str(len(typed) - 1), VARIABLE: "complete_bash"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("complete")
    (here / "runs" / "a").mkdir(parents=True)
    for name in ("runs/a/run.json", "w.pt", "baseline.json", "mine.npz", "notes.txt", ".hidden.pt"):
        (here / name).touch()
    return here


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("advbench ", "train evaluate list"),
        ("advbench train --method tr", "trades"),
        ("advbench evaluate -a pgd,squ", "pgd,square"),
        ("advbench train --preset ", "bag-of-tricks paper rice"),
        ("advbench train --method act --preset ", "paper"),
        ("advbench evaluate --dataset dig", "digits"),
        ("advbench evaluate --dataset npz:", "mine.npz runs/"),
        ("advbench evaluate --model ", "runs/a w.pt runs/ robustbench:"),
        ("advbench evaluate --model robustbench:Carmon", "Carmon2019Unlabeled"),
        ("advbench evaluate --arch=resn", "resnet18"),
        ("advbench train --arch torch", "torchvision:"),
        ("advbench compare runs/a --allow-flags at-chance,weak", "at-chance,weak-attack"),
        ("advbench compare base", "baseline.json"),
        ("advbench compare --baseline ", "runs/a baseline.json"),
        ("advbench compare --explain ", "baseline.json"),
        ("advbench evaluate --again ", "baseline.json"),
        ("advbench attack --norm l", "l2 linf"),
        ("advbench analyze tran", "transfer"),
        ("advbench list meth", "methods"),
        ("advbench list attacks apgd-", "apgd-ce apgd-t"),
        ("advbench list flags square", "square-wins"),
        ("advbench list models robustbench:Carmon", "Carmon2019Unlabeled"),
        ("advbench evaluate --sav", "--save-baseline"),
    ],
)
def test_names(
    folder: Path, line: str, some: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for name, value in asked(line).items():
        monkeypatch.setenv(name, value)
    main()
    found = set(capsys.readouterr().out.splitlines())
    assert set(some.split()) <= found and not {"notes.txt", ".hidden.pt"} & found


def test_it_loads_nothing_heavy(folder: Path) -> None:
    env = {**os.environ, **asked("advbench evaluate --model robustbench:Carmon")}
    ran = subprocess.run([sys.executable, "-c", _MAIN], env=env, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "Carmon2019Unlabeled\n", "")


def test_the_script_for_a_shell_is_shown() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "advbench", "--show-completion", "bash"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},  # no shell may have started the tests
    )  # fmt: skip
    assert ran.returncode == 0 and "_ADVBENCH_COMPLETE=complete_bash" in ran.stdout and not ran.stderr


def test_the_names_of_statistics_are_those_that_are_known() -> None:
    assert {*STATISTICS} == {*KNOWN_STATISTICS}
