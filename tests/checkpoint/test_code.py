"""The hash of a model's own code: which files it covers, and what does not change it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from advbench.checkpoint import code_sha256, load_model
from advbench.checkpoint.code import is_outside
from advbench.models import build

FILES = {
    "own/__init__.py": "",
    "own/nets.py": """
import json, numpy, torch.nn as nn
from .parts import scale
from helper import *

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
    def forward(self, x):
        import lazy
        return self.linear(x.flatten(1)) * scale

def make(): return Net()
""",
    "own/parts.py": "from own import deeper\nscale = 1\n",
    "own/deeper.py": "",
    "own/unused.py": "",
    "helper.py": "help = 1\n",
    "lazy.py": "",
    "entry.py": "from own.nets import make\n",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def forget() -> None:
    """As in another process."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("own", "helper", "lazy", "entry"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, FILES)
    forget()
    yield tmp_path
    forget()


def hashed(spec: str = "entry:make") -> str | None:
    forget()
    return load_model(spec, dataset="digits").code_sha256


@pytest.mark.parametrize("file", [name for name in FILES if name != "own/unused.py"])
def test_every_file_that_is_imported_counts(folder: Path, file: str) -> None:
    before = hashed()
    (folder / file).write_text(FILES[file] + "# changed\n")
    assert before is not None and hashed() not in (None, before)


def test_other_files_the_place_and_earlier_imports_do_not_count(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashed()
    (folder / "own/unused.py").write_text("changed = 1\n")
    assert hashed() == before
    assert load_model("entry:make", dataset="digits").code_sha256 == before  # its modules are loaded already
    assert load_model("own.nets:make", dataset="digits").code_sha256 not in (None, before)  # without entry.py
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere, FILES)
    monkeypatch.setattr(sys, "path", [str(elsewhere), *(place for place in sys.path if place != str(folder))])
    monkeypatch.chdir(elsewhere)
    assert hashed() == before


def test_the_code_that_runs_is_hashed_not_a_file_that_was_changed_since(folder: Path) -> None:
    before = hashed()
    (folder / "own/parts.py").write_text("scale = 2\n")
    assert load_model("entry:make", dataset="digits").code_sha256 == before  # Python runs what it imported
    assert hashed() != before


def test_what_cannot_be_read_is_none(folder: Path) -> None:
    space: dict[str, type[nn.Module]] = {}
    exec("class Typed(nn.Module): pass", {"nn": nn, "__name__": "typed_in"}, space)
    typed = space["Typed"]()
    assert code_sha256(typed, "Typed") is None and is_outside(typed, "Typed")
    traced = torch.jit.ScriptModule()
    assert code_sha256(traced, "") is None and is_outside(traced, "")


def test_packages_are_not_from_outside() -> None:
    for net in (
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        build("mlp", num_classes=10, in_channels=1, image_size=8),
    ):
        assert code_sha256(net, "net") is None and not is_outside(net, "net")
    loaded = load_model("torchvision:resnet18:random")
    assert loaded.code_sha256 is None and not loaded.outside


def test_relative_imports_above_the_top_and_compiled_modules_are_no_error(folder: Path) -> None:
    write(
        folder, {"lazy.py": "if False:\n    from ....above import x\n    from . import y\n    import no_such_module\n"}
    )
    assert hashed() is not None
    write(folder, {"lazy.py": "if False:\n    import _extension\n"})
    (folder / "_extension.so").write_bytes(b"\0\1")
    assert hashed() is not None
