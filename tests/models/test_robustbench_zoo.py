"""RobustBench's models: found without importing it, loaded from a local file, and what a failed download says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from advbench.checkpoint import load_model
from advbench.errors import UserError
from advbench.models import robustbench_zoo
from advbench.models.external import MODEL_TEST_SHA256
from advbench.models.robustbench_zoo import choose, zoo

NAME = "Sehwag2021Proxy_R18"  # a ResNet-18 with the state-dict keys of pyautoattack's


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVBENCH_DATA", str(tmp_path))
    return tmp_path / "models" / "robustbench"


def test_reading_the_source_gives_what_importing_gives() -> None:
    with robustbench_zoo.imported() as utils:
        imported = {
            (dataset.value, threat.value, name): tuple(
                about["gdrive_id"] if isinstance(about["gdrive_id"], list) else [about["gdrive_id"] or None]
            )
            for dataset, threats in utils.all_models.items()
            for threat, models in threats.items()
            for name, about in models.items()
        }
    assert "autoattack" not in sys.modules or not sys.modules["autoattack"].__name__.startswith("py")
    assert {(m.dataset, m.threat, m.name): tuple(drive for _, drive in m.files) for m in zoo()} == imported
    assert len(zoo()) == 206


def test_names_that_several_models_have() -> None:
    for text, dataset, norm, wanted in (
        ("Engstrom2019Robustness", None, None, "cifar10/Linf"),
        ("Engstrom2019Robustness", None, "l2", "cifar10/L2"),
        ("Engstrom2019Robustness", "imagenet", "l2", "imagenet/Linf"),
        ("Engstrom2019Robustness", "npz:x", None, "cifar10/Linf"),
        ("cifar10/L2/Engstrom2019Robustness", None, "linf", "cifar10/L2"),
        ("cifar100/Rice2020Overfitting", None, None, "cifar100/Linf"),
        ("rice2020overfitting", None, None, "cifar10/Linf"),
    ):
        model, notes = choose(text, dataset, norm)
        assert model.spec.startswith(f"robustbench:{wanted}/"), text
        assert bool(notes) is (text.count("/") < 2 and "cifar100" not in text)
    with pytest.raises(UserError, match="is not for cifar100: choose from robustbench:cifar10/Linf/Carmon"):
        choose("Carmon2019Unlabeled", "cifar100")


def test_files_of_ensembles() -> None:
    (model,) = (m for m in zoo() if m.name == "Chen2020Adversarial")
    assert [file for file, _ in model.files] == [f"Chen2020Adversarial.pt_m{i}.pt" for i in range(3)]


def test_a_state_in_its_place_is_loaded_offline(folder: Path) -> None:
    import importlib.util

    from advbench.files import sha256_file

    package = importlib.util.find_spec("pyautoattack")
    assert package is not None and package.origin is not None
    weights = Path(package.origin).parent / "examples" / "model_test.pt"
    assert sha256_file(weights) == MODEL_TEST_SHA256
    place = folder / "cifar10" / "Linf" / f"{NAME}.pt"
    place.parent.mkdir(parents=True)
    place.symlink_to(weights)
    loaded = load_model(f"robustbench:{NAME}", dataset="cifar10")
    assert (loaded.num_classes, loaded.dataset, loaded.arch) == (10, "cifar10", NAME)
    assert loaded.notes == (f"{NAME} names 2 models; chosen: robustbench:cifar10/Linf/{NAME}",)
    ours = load_model("pyautoattack:model_test")
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded.net(x), ours.net(x), atol=1e-4)


def test_a_failed_download_says_what_to_place_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gdown

    def fail(**_settings: Any) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(gdown, "download", fail)
    with pytest.raises(UserError) as caught:
        load_model(f"robustbench:cifar10/L2/{NAME}")
    text = str(caught.value)
    assert "no network at all" in text and "\n" not in text
    assert f"place {NAME}.pt (Google Drive id 1" in text and str(folder / "cifar10" / "L2") in text
    assert list((folder / "cifar10" / "L2").iterdir()) == []  # nothing half downloaded


def test_pickles_and_damage_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("this code ran",)

    place = folder / "cifar10" / "Linf" / f"{NAME}.pt"
    place.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "args": Evil()}, place)
    with pytest.raises(UserError, match="pass --trust-pickle if you trust its author"):
        load_model(f"robustbench:{NAME}")
    assert capsys.readouterr().out == ""
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(UserError, match=f"cannot load robustbench:cifar10/Linf/{NAME}: .*; to load it offline place"):
        load_model(f"robustbench:{NAME}")


def test_without_robustbench(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    zoo.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="robustbench is not installed: pip install robustbench"):
        zoo()
    zoo.cache_clear()
