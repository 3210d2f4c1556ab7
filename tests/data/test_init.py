import subprocess
import sys
import types

import pytest
import torch

from advbench.data import load, parse
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.registry import entries

NAMES = ["cifar10", "cifar100", "digits", "fashion-mnist", "imagefolder", "mnist", "npz", "svhn"]


def test_names_are_listed_without_torch() -> None:
    code = (
        "import sys; from advbench.registry import entries; import advbench.data; "
        "print(*entries('data')); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*NAMES, "False", "False"]


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_describes_its_dataset(name: str) -> None:
    about = entries("data")[name].about
    assert about["summary"]
    assert about["scale"] in (16.0, 255.0)
    assert "reference_eps" in about
    if "argument" not in about:
        assert about["shape"][0] in (1, 3)
        assert set(about["sizes"]) == {"train", "test"}
        assert len(about.get("class_names", range(about["num_classes"]))) == about["num_classes"]


def test_reference_eps_are_the_leaderboards() -> None:
    found = {name: entry.about["reference_eps"] for name, entry in entries("data").items()}
    assert found["cifar10"] == found["cifar100"] == {"linf": "8/255", "l2": "0.5"}
    assert found["mnist"] == {"linf": "0.3"}
    assert found["fashion-mnist"] == found["digits"] == {"linf": "0.1"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar-10", "did you mean cifar10"),
        ("nonsense", "choose from cifar10, cifar100, digits, fashion-mnist, imagefolder, mnist, npz, svhn"),
        ("npz", "write npz:PATH"),
        ("imagefolder:", "write imagefolder:PATH"),
        ("mnist:somewhere", "takes no argument: write mnist"),
        ("no_such_module:make", "No module named"),
    ],
)
def test_wrong_specifications(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(spec)


def test_unknown_split() -> None:
    with pytest.raises(UserError, match="choose from train, test"):
        load("digits", "val")


def test_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(split: str) -> Dataset:
        images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
        return Dataset.whole(images, torch.tensor([0, 1]), name="mine", split=split, num_classes=2)

    module = types.ModuleType("plugged_in")
    module.make, module.wrong = make, lambda split: 3  # type: ignore[attr-defined]
    module.any = lambda **how: make(how["split"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plugged_in", module)
    assert load("plugged_in:make", "test").split == "test"
    assert load("plugged_in:any", "train").split == "train"
    assert not load("plugged_in:make", "test").notes
    with pytest.raises(UserError, match=r"plugged_in:wrong is no data: give a pair \(x, y\)"):
        load("plugged_in:wrong", "test")


def test_a_plug_in_may_return_a_pair_and_take_no_split(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("plugged_in")
    module.pair = lambda: (torch.rand(3, 1, 4, 4), [2, 0, 1])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plugged_in", module)
    before = torch.random.get_rng_state()
    test, train = load("plugged_in:pair", "test"), load("plugged_in:pair", "train")
    assert (test.name, test.split, train.split) == ("plugged_in:pair", "test", "train")
    assert test.images_sha256 == train.images_sha256  # what it draws has a fixed seed
    assert torch.equal(before, torch.random.get_rng_state())
    assert "takes no split" in test.notes[0]
    assert (test.num_classes, test.num_classes_known) == (3, False)
