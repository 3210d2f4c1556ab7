"""What all tests share: settings, a tiny net with BatchNorm and dropout, and recipes that train in a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import zygote
from hypothesis import settings
from linear_classifiers import cases, exact_gain, exact_least, taught  # noqa: F401
from torch import Tensor, nn

from advbench.evaluator import flags, probes, search_beyond
from advbench.models.base import Model
from advbench.recipe import Recipe
from advbench.trainer import folder as run_folders

# A busy machine is no failure. Tests take a share of the examples; `long` is what `make test-slow` asks for.
settings.register_profile("advbench", deadline=None, max_examples=100)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile("advbench")
TINY = "tiny_arch:Tiny"
ADVERTORCH = "advertorch==0.2.3"


class Tiny(Model):
    """One convolution, BatchNorm, dropout, one layer: everything that has a mode, a buffer or random numbers."""

    def __init__(self, *, dropout: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.conv = nn.Conv2d(self.in_channels, 4, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(dropout)
        self.feature_dim = 4 * ((self.image_size + 1) // 2) ** 2
        self.linear = nn.Linear(self.feature_dim, self.num_classes)

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.act(self.bn(self.conv(self.normalise(x))))
        return maps, self.drop(maps.flatten(1))

    def head(self, z: Tensor) -> Tensor:
        return self.linear(z)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    # One of PyTorch's threads: of several test processes on few cores more are many times slower.
    threads = os.environ.get("ADVBENCH_TEST_THREADS", "1")
    torch.set_num_threads(int(threads))
    os.environ.setdefault("OMP_NUM_THREADS", threads)  # of the command lines that tests start


QUICK: dict[tuple[ModuleType, str], int] = {
    (search_beyond, "UNIT_STARTS"): 1,
    (search_beyond, "OUTPUT_STARTS"): 1,
    (search_beyond, "MAX_QUERIES"): search_beyond.MIN_QUERIES,
    (flags, "LONG_PGD_STEPS"): probes.SHORT_PGD_STEPS,
    (probes, "LONG_PGD_STEPS"): probes.SHORT_PGD_STEPS,
}
WHOLE = {place: getattr(*place) for place in QUICK}
draw_training = run_folders._figure


@pytest.fixture
def hangup() -> Iterator[None]:
    """A closed terminal has its usual effect, also where `nohup` runs the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True, scope="session")
def _quick() -> Iterator[None]:
    """Short probes, and no figure of a training: these are most of the time of small ones.

    Tests of flags ask for `whole_probes`, those of the figure for `drawn`.
    """
    with pytest.MonkeyPatch.context() as patch:
        for place, count in QUICK.items():
            patch.setattr(*place, count)
        patch.setattr(run_folders, "_figure", lambda recipe, history: b"<svg/>")
        yield


@pytest.fixture
def whole_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, count in WHOLE.items():
        monkeypatch.setattr(*place, count)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folders, "_figure", draw_training)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("tiny_arch")
    module.Tiny = Tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_arch", module)
    yield


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """A recipe of 2 epochs of 6 steps; settings as --set takes them."""

    def make(method: str = "pgd-at", *sets: str, eps: str = "0.1", arch: str = TINY) -> Recipe:
        short = ["epochs=2", "batch_size=16", "train_n=120", "validation.fraction=0.2", "inner.steps=2"]
        short += ["validation.steps=2", "optim.lr=0.05", "inner.warmup=0", "schedule.name=constant"]
        if method in ("fast-at", "n-fgsm", "free-at"):
            short.remove("inner.steps=2")
        if method == "learned-optimizer":  # one step of meta-training, then those of the net
            short += ["method.meta=0.05", "method.T_first=3", "method.T=3", "method.clean_phase=0"]
        return Recipe.resolve(method=method, arch=arch, eps=eps, sets=[*short, *sets])

    return make


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A program to use in the place of `python`, which starts in a tenth of the time."""
    program, server = zygote.start(tmp_path_factory.mktemp("zygote"))
    yield str(program)
    server.communicate()


@pytest.fixture(scope="module")
def started_by_fork(forked: str) -> Iterator[None]:
    """In this module, processes that are started by `sys.executable` are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", forked)
        yield


@dataclass(frozen=True)
class Disk:
    """A disk of 4 MB mounted at `folder`, which can be full, or refuse all writing."""

    folder: Path

    def fill(self) -> None:
        """Leave no room, not even for an empty file."""
        with pytest.raises(OSError, match="No space left"), (self.folder / "filler").open("wb") as stream:
            while True:
                stream.write(bytes(4096))
                stream.flush()

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def read_only(self, on: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", str(self.folder)], check=True)

    def contents(self) -> dict[str, bytes]:
        """Every file but locks, journals and what fills the disk."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in files
            if path.name not in (".lock", ".turn", "filler") and path.suffix != ".journal"
        }


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    folder = tmp_path_factory.mktemp("disk")
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk needs the right to mount one: {getattr(error, 'stderr', error)}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def advertorch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained MNIST networks of advertorch's source archive (LGPL: fetched, never kept here)."""
    folder = tmp_path_factory.mktemp("advertorch")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    try:
        subprocess.run([*command, ADVERTORCH, "-d", str(folder)], check=True, capture_output=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{ADVERTORCH} cannot be downloaded with pip: {error}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        for member in archive.getmembers():
            if member.name.endswith(".pt"):
                stream = archive.extractfile(member)
                assert stream is not None
                (folder / Path(member.name).name).write_bytes(stream.read())
    return folder
