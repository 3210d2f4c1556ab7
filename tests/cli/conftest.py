"""Fixtures: a command line that runs in this process in an empty folder, and a small trained run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from advbench.cli import run


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def is_one_clear_line(self) -> bool:
        """Exit code 2, nothing on stdout, and on stderr one line without a traceback."""
        return self.code == 2 and not self.out and self.err.startswith("error: ") and self.err.count("\n") == 1


@dataclass(frozen=True)
class Cli:
    """`cli("evaluate", "-n", "5")` runs a command line in `folder`, which is empty at first."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *argv: object) -> Ran:
        self.capture.readouterr()
        code = run([str(word) for word in argv])
        captured = self.capture.readouterr()
        return Ran(code, captured.out, captured.err)

    def files(self) -> set[str]:
        """All paths below the folder except locks."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.name != ".lock"}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """The command line, whose modules in its folder are forgotten at the end: other tests have some of those names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    yield Cli(tmp_path, capfd)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch on 512 digits, to be copied."""
    from advbench import train

    settings = {"train_n": 512, "batch_size": 32, "validation.n": 64, "inner.steps": 2, "optim.lr": 0.05}
    out = tmp_path_factory.mktemp("trained") / "pgd-at"
    return train("pgd-at", dataset="digits", arch="mlp", eps="0.1", epochs=1, settings=settings, device="cpu", out=out)


@pytest.fixture
def run_folder(cli: Cli, trained: Path) -> Path:
    """runs/a in the empty folder, a copy of `trained`."""
    shutil.copytree(trained, cli.folder / "runs" / "a")
    return Path("runs/a")
