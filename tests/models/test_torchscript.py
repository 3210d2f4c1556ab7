"""TorchScript files: read without consent to pickles, refused where their code could write files."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advbench.checkpoint import load_model, weights_sha256
from advbench.errors import Untrusted, UserError
from advbench.models import build
from advbench.models.torchscript import is_torchscript

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Saves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "stolen.bin")
        return x.flatten(1)[:, :10]


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] + torch.from_file("stolen.bin", True, 10).fill_(0.0)


def saved(net: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(net.eval()).save(path)
    return path


def network() -> nn.Module:
    return build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0)


def test_a_file_is_the_module_that_was_saved(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    path = saved(net, tmp_path / "any name.model")
    loaded = load_model(str(path), dataset="digits")
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(loaded.net(x), net(x), atol=1e-6)
    assert loaded.weights_sha256 == weights_sha256(net) and loaded.num_classes == 10 and loaded.outside
    assert loaded.arch == "Sequential"


def test_other_files_are_no_torchscript(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no archive")
    names = ("state.pt", "text.pt", "missing.pt", ".")
    assert not any(is_torchscript(tmp_path / name) for name in names)


def test_a_damaged_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "x.pt")
    damaged = tmp_path / "damaged.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"def forward(", b"def forward)"))
    with pytest.raises(UserError, match=r"cannot read .*damaged\.pt") as raised:
        load_model(str(damaged), dataset="digits")
    assert "\n" not in str(raised.value)


def test_an_architecture_is_not_needed(tmp_path: Path) -> None:
    path = saved(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="is a TorchScript archive: leave out --arch"):
        load_model(str(path), arch="mlp", dataset="digits")


def test_a_module_for_other_images_is_refused(tmp_path: Path) -> None:
    path = saved(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="does not take the 1x28x28 images of mnist"):
        load_model(str(path), dataset="mnist")


@pytest.mark.parametrize("kind", [Saves, Maps])
def test_code_that_could_write_files_does_not_run_without_consent(
    kind: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(kind(), tmp_path / "x.pt")
    with pytest.raises(Untrusted, match="could write files: pass --trust-pickle if you trust its author"):
        load_model(str(path), dataset="digits")
    assert not Path("stolen.bin").exists()
    load_model(str(path), dataset="digits", trust_pickle=True)
    assert Path("stolen.bin").exists()
