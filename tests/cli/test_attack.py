"""`advbench attack`: the files agree with each other, with the output and with the model."""

from __future__ import annotations

import csv
import io
import json
import shlex
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from advbench.checkpoint import load_model
from advbench.cli import attack as attack_module
from advbench.cli import keep
from advbench.cli.examples import KEY
from advbench.cli.picture import Panel, picture
from advbench.data import load
from advbench.engine.losses import margin

OUT = "attacks/pgd-a-digits-linf-0.1"


def test_every_flag_reaches_the_function(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(attack_module, "attack", lambda flags, **given: seen.append((flags, given)))
    argv = shlex.split(
        "attack --model a --attack fgsm --eps 4/255 -n 9 --dataset mnist --arch lenet5 --mean mnist --std 0.5 "
        "--abstain last --norm l2 --seed 3 --device cpu --precision fp32 "
        "--set restarts=2 --attack-budget 500 --format npz,png --out o --dry-run --resume --force --trust-pickle --json"
    )
    assert cli(*argv).code == 0
    ((flags, given),) = seen
    assert given.pop("screen").as_json and given == {"argv": tuple(argv)}
    assert asdict(flags) == {
        "model": "a",
        "attack": "fgsm",
        "eps": "4/255",
        "n": 9,
        "dataset": "mnist",
        "arch": "lenet5",
        "mean": "mnist",
        "std": "0.5",
        "abstain": "last",
        "norm": "l2",
        "seed": 3,
        "device": "cpu",
        "precision": "fp32",
        "settings": {"restarts": 2},
        "attack_budget": 500,
        "formats": ("npz", "png"),
        "out": Path("o"),
        "resume": True,
        "force": True,
        "dry_run": True,
    }


def test_the_examples_fool_the_model_inside_the_ball(cli: Any, run_folder: Path) -> None:
    ran = cli("attack")
    assert ran.code == 0
    assert ran.out.startswith("pgd on runs/a (newest run): the first 64 images of digits")
    folder = cli.folder / OUT
    assert {path.name for path in folder.iterdir()} == {"examples.npz", "examples.csv", "examples.png", "attack.json"}
    with np.load(folder / "examples.npz") as stored:
        arrays = dict(stored)
    x, x_adv, felled = (torch.from_numpy(arrays[name]) for name in ("x", "x_adv", "felled"))
    net = load_model(str(cli.folder / "runs/a")).net
    with torch.no_grad():
        before, after = net(x).argmax(1), net(x_adv).argmax(1)
    y = torch.from_numpy(arrays["y"])
    assert torch.equal(x, load("digits", "test").batch(slice(0, 64))[0])
    assert before.tolist() == arrays["before"].tolist() and after.tolist() == arrays["after"].tolist()
    assert arrays["index"].tolist() == list(range(64))
    assert felled.any() and bool((after != y)[felled].all()) and bool((before == y)[felled].all())
    tried = ~felled & (before == y)
    assert torch.equal(x_adv[before != y], x[before != y])  # was not attacked
    with torch.no_grad():
        rises = margin(net(x_adv), y) - margin(net(x), y)
    assert (rises[tried] > 0).all() and tried.any()  # an attempt, not the clean image
    assert arrays["margin"] == pytest.approx(margin(net(x_adv), y).detach().numpy(), abs=1e-4)
    bound = torch.tensor(0.1)
    assert bool((x_adv >= (x - bound).clamp_min(0)).all() & (x_adv <= (x + bound).clamp_max(1)).all())
    assert arrays["size"] == pytest.approx((x_adv.double() - x.double()).abs().amax((1, 2, 3)).numpy())


def test_the_table_and_the_numbers_agree(cli: Any, run_folder: Path) -> None:
    printed = json.loads(cli("attack", "-n", "30", "--json").out)
    with (cli.folder / OUT / "examples.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == printed["n"] == 30
    right = [row for row in rows if row["label"] == row["before"]]
    felled = [row for row in rows if row["felled"] == "true"]
    assert (len(right), len(felled), len(right) - len(felled)) == (
        printed["right"],
        printed["felled"],
        printed["robust"],
    )
    assert all(float(row["size"]) == float(row["linf"]) <= 0.1 + 1e-6 for row in rows)
    assert all(
        float(row["linf"]) <= float(row["l2"]) <= 8 * float(row["linf"]) * (1 + 1e-5) for row in rows
    )  # 64 elements
    assert all(row["by"] == ("pgd" if row["felled"] == "true" else "") for row in rows)
    for when in ("before", "after"):
        for row in rows:
            sure, label = float(row[f"confidence_{when}"]), float(row[f"label_{when}"])
            assert 0 <= label <= sure <= 1 and (label == sure) == (row[when] == row["label"])
    record = json.loads((cli.folder / OUT / "attack.json").read_text())
    assert record == printed["record"]
    assert record["curve"][0]["robust"] == printed["robust"]


def test_the_picture_shows_every_sample_up_to_sixteen(cli: Any, run_folder: Path) -> None:
    sizes = []
    for n in (1, 5, 20):
        assert cli("attack", "-n", n, "--out", f"p{n}").code == 0
        with Image.open(cli.folder / f"p{n}" / "examples.png") as picture:
            sizes.append(picture.size)
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 16
    assert sizes[0][1] < sizes[1][1] < sizes[2][1]  # 1, 5 and 8 lines
    assert sizes[0][0] == sizes[1][0] < sizes[2][0]  # a second block


@pytest.mark.parametrize("count", [1, 9])
def test_the_text_of_the_picture_is_not_cut(count: int) -> None:
    panel = Panel(np.ones((1, 4, 4)), f"{'W' * 60} the end")
    content = picture([(panel, panel, panel)] * count, "a/long/path/" * 9 + ": pgd, linf eps 8/255", KEY * 2)
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("L"))
    assert (pixels[0] == 255).all() and (pixels[:, [0, -1]] == 255).all()


def test_the_nearest_points_may_lie_outside_the_ball(cli: Any, run_folder: Path) -> None:
    printed = json.loads(
        cli("attack", "-n", "20", "--attack", "fab", "--set", "steps=5", "--eps", "0.05", "--out", "o", "--json").out
    )
    with np.load(cli.folder / "o/examples.npz") as stored:
        felled, size, wrong = stored["felled"], stored["size"], stored["after"] != stored["y"]
    assert (size > 0.05 + 1e-6).any() and wrong[size > 0].all()
    assert (size[felled] <= 0.05 + 1e-6).all() and felled.sum() == printed["felled"]
    assert printed["robust"] == printed["record"]["curve"][0]["robust"]


def test_images_stay_adversarial_as_png_and_lie_in_the_ball(cli: Any, run_folder: Path) -> None:
    eps, out = "0.06", cli.folder / "o"
    for norm, size in (("linf", eps), ("l2", "0.4")):
        ran = cli(
            "attack", "--norm", norm, "--eps", size, "--format", "png", "--format", "npz", "--out", "o", "--force"
        )
        assert ran.code == 0
        with np.load(out / "examples.npz") as stored:
            arrays = dict(stored)
        net, place = (
            load_model(str(cli.folder / "runs/a")).net,
            {index: row for row, index in enumerate(arrays["index"])},
        )
        shown = sorted((out / "images/adversarial").iterdir())
        for path in shown:
            index, label, before, after = map(int, path.stem.split("-"))
            with Image.open(path) as image:
                assert image.mode == "L"
                z = torch.from_numpy(np.asarray(image).copy())[None, None].float() / 255
            x, y = arrays["x"][place[index]], arrays["y"][place[index]]
            change = z[0].double().numpy() - x
            length = np.abs(change).max() if norm == "linf" else np.sqrt((change**2).sum())
            assert length <= float(size) * (1 + 1e-5) + 1e-6
            with torch.no_grad():
                assert int(net(z).argmax()) == after != label == before == y
        felled = int(arrays["felled"].sum())
        assert 0 < len(shown) <= felled and f"{len(shown)} of {felled} adversarial examples stay" in ran.out
        assert len(list((out / "images/clean").iterdir())) == 64
    assert cli("attack", "-n", "3", "--out", "o", "--force").code == 0
    assert not list(out.glob("images/*/*.png"))  # of another attack
    refused = cli("attack", "--format", "jpg")
    assert refused.is_one_clear_line and "npz, png" in refused.err


def test_the_current_folder_as_the_place(cli: Any, run_folder: Path) -> None:
    refused = cli("attack", "-n", "3", "--out", ".")
    assert refused.is_one_clear_line and "--force" in refused.err
    ran = cli("attack", "-n", "3", "--out", ".", "--force")
    assert ran.code == 0 and (cli.folder / "examples.npz").is_file() and run_folder.is_dir(), ran.err


def test_a_folder_is_replaced_only_by_force(cli: Any, run_folder: Path) -> None:
    assert cli("attack", "-n", "5").code == 0
    assert cli("attack", "-n", "5").code == 0
    assert (cli.folder / f"{OUT}-2").is_dir()
    refused = cli("attack", "-n", "5", "--out", OUT)
    assert refused.is_one_clear_line and "--force" in refused.err
    assert cli("attack", "-n", "7", "--out", OUT, "--force").code == 0
    with np.load(cli.folder / OUT / "examples.npz") as stored:
        assert len(stored["y"]) == 7


def test_interrupted_and_resumed(cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def search_progress(bar: Any) -> Any:
        return lambda forecast: os.kill(os.getpid(), signal.SIGINT) if forecast.told()[1] else None

    argv = ["attack", "-n", "40", "--attack", "square", "--set", "n_queries=30"]
    with monkeypatch.context() as patch:
        patch.setattr(keep, "search_progress", search_progress)
        ran = cli(*argv)
    assert ran.code == 3 and not (cli.folder / "attacks/square-a-digits-linf-0.1").exists()
    command = shlex.split(ran.err.splitlines()[-1].partition("continue with: ")[2])
    resumed = cli(*command[1:])
    assert resumed.code == 0
    assert cli(*argv, "--out", "whole").code == 0
    with (
        np.load(cli.folder / "whole/examples.npz") as whole,
        np.load(cli.folder / "attacks/square-a-digits-linf-0.1/examples.npz") as part,
    ):
        assert all(np.array_equal(whole[name], part[name]) for name in whole)


def test_a_misspelt_target_and_an_attack_without_one(cli: Any, run_folder: Path) -> None:
    ran = cli("attack", "-n", "5", "--set", "target=randon")
    assert ran.is_one_clear_line and "random, least-likely or a file" in ran.err
    ran = cli("attack", "-n", "5", "--attack", "fab", "--set", "target=random")
    assert ran.is_one_clear_line and "fab has no setting 'target'" in ran.err and "pgd, " in ran.err
    ran = cli("attack", "-n", "5", "--set", "stepz=3")
    assert ran.is_one_clear_line and "did you mean steps" in ran.err


def test_sources_and_features_aim_too(cli: Any, run_folder: Path) -> None:
    for attack, more in (("transfer", ["--set", "source=runs/a"]), ("feature-pgd", [])):
        aimed = ["--eps", "0.5", "--set", "target=random", "--set", "steps=20", *more, "--json"]
        printed = json.loads(cli("attack", "-n", "20", "--attack", attack, *aimed).out)
        assert printed["felled"] > 0 and printed["record"]["attack"][0]["settings"]["target"] == "random"


def test_images_of_classes_without_names(cli: Any, run_folder: Path) -> None:
    """Images that stand have no answer in 8 bit, which was looked up among the names of the classes."""
    x, y = load("digits", "test").batch(slice(0, 6))
    np.savez("mine.npz", x_test=x, y_test=y)
    given = ("--model", "runs/a", "--dataset", "npz:mine.npz", "--attack", "fgsm", "--format", "png", "--out", "o")
    assert cli("attack", *given, "--eps", "0").code == 0
    assert sorted(path.name for path in Path("o/images").rglob("*.png")) == sorted(
        f"{row}-{label}.png" for row, label in enumerate(y.tolist())
    )
