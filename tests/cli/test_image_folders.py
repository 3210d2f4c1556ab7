"""Image folders on the command line: digits as PNG files in an empty folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import advbench
from advbench.checkpoint import read_card
from advbench.checkpoint.card import write_card
from advbench.data import load
from advbench.data.corruptions import COMMON, SEVERITIES
from advbench.errors import UserError

SHORT = ("--epochs", "1", "--set", "inner.steps=1", "--set", "validation.fraction=0.1")


@pytest.fixture
def photos(cli: Any) -> Path:
    """photos/zero and photos/one, 20 digits each, and a copy of one that a notebook left."""
    digits = load("digits", "test")
    for label, name in enumerate(("zero", "one")):
        folder = cli.folder / "photos" / name
        folder.mkdir(parents=True)
        for row in (digits.labels == label).nonzero()[:20, 0].tolist():
            Image.fromarray((digits.images[row, 0] * 15).numpy()).save(folder / f"{row}.png")
    (folder / ".ipynb_checkpoints").mkdir()
    Image.new("L", (8, 8)).save(folder / ".ipynb_checkpoints/a-checkpoint.png")
    return Path("photos")


def test_a_run_on_one_folder_is_tested_on_what_it_held_back(cli: Any, photos: Path) -> None:
    train = (
        "train", "--method", "pgd-at", "--dataset", f"imagefolder:{photos}/", "--arch", "mlp", "--eps", "0.1", *SHORT,
        "--out", "run",
    )  # fmt: skip
    ran = cli(*train)
    assert ran.code == 0, ran.err
    assert "imagefolder:photos@fifth: 27 images, by class 0 = one (12), 1 = zero (15)" in ran.err
    assert "skipped: 1 hidden files or folders" in ran.err
    assert json.loads(Path("run/run.json").read_text())["dataset"] == "imagefolder:photos@fifth"

    ran = cli("evaluate", "--model", "run", "--attack", "fgsm", "--eps", "0,0.1")
    assert ran.code == 0, ran.err
    assert "imagefolder:photos@fifth: 13 images, by class 0 = one (8), 1 = zero (5)" in ran.err
    record = json.loads(next(Path("run/records").rglob("*.json")).read_text())
    assert record["dataset"]["name"] == "imagefolder:photos@fifth" and record["curve"][0]["n"] == 13

    for model in ("run", "run/model.safetensors"):
        for dataset in (f"imagefolder:{photos}", f"imagefolder:{cli.folder}/photos/@8"):
            for command in ("evaluate", "attack"):
                ran = cli(command, "--model", model, "--dataset", dataset, "--attack", "fgsm", "--eps", "0.1")
                assert ran.is_one_clear_line and "@fifth, the fifth that was held back" in ran.err
    for given in ("run", advbench.load_model("run")):
        with pytest.raises(UserError, match=r"@fifth, the fifth that was held back"):
            advbench.evaluate(given, advbench.load_data("imagefolder:photos"), attack="fgsm", eps=["0.1"])
    assert "is finished" in cli(*train, "--resume").err
    ran = cli("attack", "--model", "run", "--dataset", "imagefolder:photos@fifth", "--attack", "fgsm", "--eps", "0.1")
    assert ran.code == 0 and "all 13 images" in ran.out, ran.err


def test_a_run_that_was_recorded_without_its_fifth_is_tested_on_it_too(cli: Any, photos: Path) -> None:
    assert cli(
        "train", "--method", "pgd-at", "--dataset", "imagefolder:photos", "--arch", "mlp", "--eps", "0.1", *SHORT,
        "--out", "run",
    ).code == 0  # fmt: skip
    out = Path("run")
    write_card(out, read_card(out).model_copy(update={"dataset": "imagefolder:photos"}))
    ran = cli("evaluate", "--model", "run", "--attack", "fgsm", "--eps", "0.1", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["dataset"]["name"] == "imagefolder:photos@fifth"
    assert cli("evaluate", "--model", "run", "--dataset", "imagefolder:photos", "--eps", "0.1").is_one_clear_line


def test_a_run_is_not_tested_on_classes_under_other_labels(cli: Any, photos: Path) -> None:
    shutil.copytree(photos, cli.folder / "trained")
    shutil.copytree(photos / "one", cli.folder / "trained/nine")
    assert cli(
        "train", "--method", "pgd-at", "--dataset", "imagefolder:trained", "--arch", "mlp", "--eps", "0.1", *SHORT,
        "--out", "run",
    ).code == 0  # fmt: skip
    ran = cli("evaluate", "--model", "run", "--dataset", "imagefolder:photos", "--attack", "fgsm", "--eps", "0.1")
    assert ran.code == 2 and ran.err.startswith("error: ") and ran.err.count("\n") == 1


def test_a_model_from_elsewhere_is_tested_on_all_images(cli: Any, photos: Path) -> None:
    (cli.folder / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))\n"
    )
    ran = cli("evaluate", "--model", "mine:net", "--dataset", f"imagefolder:{photos}", "--attack", "fgsm", "--eps", "0")
    assert ran.code == 0, ran.err
    assert "all 40 images of imagefolder:photos" in ran.out
    assert "imagefolder:photos: 40 images, by class 0 = one (20), 1 = zero (20)" in ran.err
    for number in range(5):
        (photos / f"one/bad{number}.png").write_bytes(b"")
    before = cli.files()
    for command in ("evaluate", "attack"):
        ran = cli(command, "--model", "mine:net", "--dataset", f"imagefolder:{photos}", "--eps", "0.1")
        assert ran.is_one_clear_line and "cannot read 5 of 45 images of photos: one/bad0.png (it is empty)" in ran.err
    ran = cli("train", "--dataset", f"imagefolder:{photos}", "--arch", "mlp", "--eps", "0.1", *SHORT)
    assert ran.code == 2 and "bad1.png (it is empty)" in ran.err and "Traceback" not in ran.err
    assert cli.files() == before


def test_images_that_are_not_square_are_evaluated(cli: Any, photos: Path) -> None:
    (cli.folder / "oblong.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8, 2))\n"
    )
    ran = cli(
        "evaluate",
        "--model",
        "oblong:net",
        "--dataset",
        f"imagefolder:{photos}@6x8",
        "--attack",
        "fgsm",
        "--eps",
        "0.1",
    )
    assert ran.code == 0 and "40 images of imagefolder:photos@6x8" in ran.out, ran.err


def test_published_corruptions_of_an_image_folder(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVBENCH_DATA", "cache")
    (cli.folder / "dark.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Dark(nn.Module):\n"
        "    def forward(self, x):\n"
        "        mean = x.mean((1, 2, 3))\n"
        "        return torch.stack([0.5 - mean, mean - 0.5], 1)\n"
        "def net(): return Dark()\n"
    )

    def write(folder: Path, grey: int) -> None:
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (32, 32), (grey,) * 3).save(folder / f"{number}.JPEG")

    for number, name in enumerate(COMMON):
        for severity in SEVERITIES:
            place = Path("cache/ImageNet-C", name, str(severity))
            write(place / "dark", 200 if (number, severity) == (4, 3) else 20)
            write(place / "light", 230)
    for name, grey in (("dark", 20), ("light", 230)):
        write(Path("val", name), grey)
    ran = cli("evaluate", "--model", "dark:net", "--dataset", "imagefolder:val", "--attack", "corruptions", "--json")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert [point["robust"] for point in record["curve"]] == [6, 6, 6, 3, 3, 3]
    assert record["corruptions"]["errors"][COMMON[4]] == [0, 0, 0.5, 0, 0]
    assert record["attack"][0]["settings"]["source"] == "ImageNet-C"
    details = {flag["name"]: flag["detail"] for flag in record["flags"]}
    assert details["corruptions"].startswith("images of ImageNet-C, matched by class folder and file name")
