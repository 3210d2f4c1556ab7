"""Common corruptions: images, verdicts and record, with a stand-in for the package and, where installed, with it."""

from __future__ import annotations

import builtins
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.cli.evaluate import Flags
from advbench.cli.evaluate import evaluate as run
from advbench.data import corruptions
from advbench.data.corruptions import COMMON, PACKAGE, corrupted, source_of
from advbench.data.dataset import Dataset
from advbench.eps import parse_eps
from advbench.errors import UserError
from advbench.evaluator import Evaluation, Journal, Series, Settings, bare, evaluate
from advbench.leaderboard import build
from advbench.record import load_record

N, SIDE = 12, 28


class Threshold(nn.Module):
    """Class 1 where the mean of the image is above `at`."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([self.at - mean, mean - self.at], 1)


class Always(nn.Module):
    """Class 0 for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(x), 2) + 0 * x.flatten(1)[:, :1]


def stand_in(image: np.ndarray, severity: int, corruption_name: str, seed: int | None = None) -> np.ndarray:
    """Brighten by 20 for each severity and by the place of the corruption; add noise of the global generator."""
    assert image.dtype == np.uint8 and image.shape[2] == 3 and min(image.shape[:2]) >= 32
    noise = np.random.randint(0, 3, image.shape)
    sys.stdout.write("as the package does at times")
    shift = 20 * severity + COMMON.index(corruption_name)
    return np.clip(image.astype(int) + shift + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("imagecorruptions")
    module.corrupt = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imagecorruptions", module)
    monkeypatch.setattr(corruptions.metadata, "version", lambda name: "1.0-test")


def grey(levels: list[int], channels: int = 1, side: int = SIDE, name: str = "grey") -> Dataset:
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, side, side).contiguous()
    return Dataset.whole(images, torch.zeros(len(levels), dtype=torch.int64), name=name, split="test", num_classes=2)


LEVELS = [10 + 12 * i for i in range(N)]


def measured(net: nn.Module, data: Dataset, eps: str = "0,1,2,3,4,5", seed: int = 0) -> Evaluation:
    return evaluate(net, data, Settings(attack="corruptions", eps=eps.split(","), norm="corruptions", seed=seed))


def test_the_curve_is_the_worst_case_and_the_table_each_ones_error(package: None) -> None:
    at = 0.5
    result = measured(Threshold(at), grey(LEVELS))
    # At severity s the k-th corruption adds 20 s + k, and 0 to 2 of noise: the last, of 14 more, is the worst.
    for place, point in enumerate(result.record.curve):
        surely = sum(level + 20 * place + 14 * (place > 0) + 2 < 255 * at for level in LEVELS)
        perhaps = sum(level + 20 * place + 14 * (place > 0) < 255 * at for level in LEVELS)
        assert surely <= point.robust <= perhaps
    table = result.record.corruptions
    assert table is not None and tuple(table.errors) == COMMON
    first = [sum(level + 20 * s + 1 > 255 * at for level in LEVELS) / N for s in range(1, 6)]
    assert np.abs(np.array(table.errors["gaussian_noise"]) - first).max() <= 1 / N
    assert table.mce == pytest.approx(np.mean(list(table.errors.values())))
    assert result.record.norm == "corruptions" and result.record.attack_name == "corruptions"
    worst = int(result.fates.by.max())
    assert result.record.attack[worst].settings["source"] == f"{PACKAGE} 1.0-test"
    assert {flag.name: flag.detail for flag in result.record.flags}["corruptions"].startswith(f"images of {PACKAGE}")


def test_each_severity_of_each_corruption_is_told(package: None) -> None:
    outlooks, series = [], Series()
    journal = Journal(progress=lambda forecast: outlooks.append(series.outlook(forecast)))
    settings = Settings(attack="corruptions", eps=["1", "2"], norm="corruptions")
    evaluate(Threshold(0.5), grey(LEVELS), settings, journal=journal)
    stages = [one.what for one in outlooks if one.what.startswith("attack")]
    assert len(stages) == 15 * 5 and len(set(stages)) == 15 and stages[0].startswith("attack 1 of 15: ")
    shares = [one.share or 0.0 for one in outlooks]
    assert shares == sorted(shares) and 0 < shares[20] < shares[60]


def test_severity_0_is_clean_and_a_constant_classifier_never_falls(package: None) -> None:
    data = grey(LEVELS)
    net = Threshold(0.2)
    result = measured(net, data, "0")
    assert result.record.curve[0].robust == sum(level < 0.2 * 255 for level in LEVELS) == round(N * result.record.clean)
    always = measured(Always(), data)
    assert [point.accuracy for point in always.record.curve] == [1.0] * 6
    assert always.record.corruptions is not None and always.record.corruptions.mce == 0
    part = measured(net, data, "1,3").fates
    whole = measured(net, data).fates
    assert (part.standing(0) == whole.standing(1)).all() and (part.standing(1) == whole.standing(3)).all()


def test_an_images_corruption_does_not_depend_on_the_other_images(package: None) -> None:
    data = grey(LEVELS)
    order = [7, 2, 11, 0]
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    options = {"source": source_of(data), "seed": 3}
    whole = corrupted(data, "snow", 2, **options)  # type: ignore[arg-type]
    some = corrupted(data.subset(order), "snow", 2, **options)  # type: ignore[arg-type]
    assert torch.equal(whole[order], some)
    assert not torch.equal(whole, corrupted(data, "snow", 2, source=source_of(data), seed=4))
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]
    assert whole.shape == (N, 1, SIDE, SIDE) and whole.min() >= 0 and whole.max() <= 1
    net = Threshold(0.5)
    one, other = measured(net, data), measured(net, data.subset(order))
    assert (one.fates.fell[order] == other.fates.fell).all() and (one.fates.by[order] == other.fates.by).all()
    assert measured(net, data).record.id == one.record.id != measured(net, data, seed=1).record.id


def test_the_corruptions_are_those_of_the_evaluations_seed(package: None) -> None:
    """The threshold is in the middle of the stand-in's noise for the first corruption at severity 1."""
    data, net = grey([106] * N), Threshold(127 / 255)
    tables = [measured(net, data, seed=seed).record.corruptions for seed in (0, 2, 2)]
    first, second, again = (table.errors["gaussian_noise"][0] for table in tables if table is not None)
    assert 0 < first < 1 and first != second == again


def test_the_record_is_read_back_and_has_a_table_of_its_own(package: None, tmp_path: Path) -> None:
    result = measured(Threshold(0.5), grey(LEVELS))
    path = result.record.save(tmp_path, result.fates)
    assert path.parent.parts[-2:] == ("grey", "corruptions")
    assert load_record(path)[0] == result.record
    assert json.loads(path.read_text())["corruptions"]["mce"] == result.record.corruptions.mce  # type: ignore[union-attr]
    assert {file.name for file in build(tmp_path / "records", tmp_path).files} == {
        "index.html",
        *(f"grey-corruptions.{kind}" for kind in ("csv", "md", "svg")),
    }
    ball = evaluate(Threshold(0.5), grey(LEVELS), Settings(attack="fgsm", eps=["0.1"]))
    assert "corruptions" not in json.loads(ball.record.save(tmp_path, ball.fates).read_text())


class Doubtful(Threshold):
    """Rejects images whose mean is from `at` to `beyond`, and answers class 1 above that."""

    def __init__(self, at: float, beyond: float) -> None:
        super().__init__(at)
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        zero, one = (self.at - mean).sign(), (mean - self.beyond).sign()
        return torch.stack([zero, one, torch.minimum(-zero, -one)], 1) + 0 * x.flatten(1)[:, :1]


def test_a_corrupted_image_that_is_rejected_is_withstood_and_a_clean_one_wrong(package: None) -> None:
    data, settings = grey(LEVELS), Settings(attack="corruptions", eps="012345", norm="corruptions")

    def of(net: nn.Module) -> Evaluation:
        return evaluate(bare(net, data).read_as(abstain="last"), data, settings)

    right = sum(level < 0.3 * 255 for level in LEVELS)
    cautious, bold = of(Doubtful(0.3, 2.0)), of(Doubtful(0.3, 0.5))
    assert [point.robust for point in cautious.record.curve] == [right] * 6  # what gets too bright is rejected
    assert cautious.record.corruptions is not None and cautious.record.corruptions.mce == 0
    beyond = measured(Threshold(0.5), data)
    fell = [place >= 0 and level < 0.3 * 255 for place, level in zip(beyond.fates.fell, LEVELS, strict=True)]
    assert bold.record.curve[0].robust == right > bold.record.curve[5].robust == right - sum(fell)
    assert bold.record.corruptions == beyond.record.corruptions  # of all images, as for other models


@pytest.mark.parametrize("text", ["6", "-1", "0.5", "8/255", "", "1.0"])
def test_severities_are_whole_numbers_to_5(text: str) -> None:
    with pytest.raises(UserError, match="no severity"):
        parse_eps(text, "corruptions")


def test_bad_requests_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVBENCH_DATA", str(tmp_path))
    true_import = builtins.__import__

    def without(name: str, *args: object, **more: object) -> object:
        if name == "imagecorruptions":
            raise ImportError(f"No module named {name!r}")
        return true_import(name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    cases = [
        (lambda: measured(Always(), grey(LEVELS)), "pip install 'advbench"),
        (lambda: measured(Always(), grey(LEVELS, side=8)), "28 pixels a side, not 1x8x8"),
        (lambda: measured(Always(), grey(LEVELS, channels=2)), "1 or 3 channels"),
        (lambda: source_of(grey(LEVELS), "CIFAR-10-C"), "is not whole in"),
        (
            lambda: evaluate(Always(), grey(LEVELS), Settings(attack="corruptions", eps=["0.1"])),
            "no form for norm linf",
        ),
        (
            lambda: evaluate(Always(), grey(LEVELS), Settings(attack="pgd", eps=["1"], norm="corruptions")),
            "no form for norm",
        ),
        (lambda: run(Flags(models=["x.pt"], attacks=["corruptions", "pgd"])), "by themselves"),
        (lambda: run(Flags(models=["x.pt"], attacks=["corruptions"], norm="l2")), "by themselves"),
        (lambda: run(Flags(models=["x.pt"], attacks=["corruptions"], eps="8/255")), "no severity"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_grey_noise_is_one_draw_and_not_the_mean_of_three(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(image: np.ndarray, severity: int, corruption_name: str, seed: int | None = None) -> np.ndarray:
        return np.where(np.random.random(image.shape) < 0.5, 0, 255).astype(np.uint8)

    monkeypatch.setattr(sys.modules["imagecorruptions"], "corrupt", noisy)
    data = grey([128, 128])
    for name in ("gaussian_noise", "shot_noise", "impulse_noise"):
        points = corrupted(data, name, 1, source=source_of(data), seed=0)
        assert points.shape == (2, 1, SIDE, SIDE) and points.unique().tolist() == [0, 1]


def test_the_package_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imagecorruptions", reason=f"{PACKAGE} is not installed: the extra advbench[corruptions]")
    monkeypatch.setenv("ADVBENCH_DATA", str(tmp_path))
    draw = torch.Generator().manual_seed(0)
    for shape in ((3, 1, 28, 28), (3, 3, 32, 32)):
        images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        data = Dataset.whole(images, torch.zeros(3, dtype=torch.int64), name="x", split="test", num_classes=2)
        source = source_of(data)
        for name in COMMON:
            light, strong = (corrupted(data, name, severity, source=source, seed=0) for severity in (1, 5))
            assert light.shape == shape and light.dtype == torch.float32
            assert min(light.min(), strong.min()) >= 0 and max(light.max(), strong.max()) <= 1
            assert torch.equal(light[[2, 0]], corrupted(data.subset([2, 0]), name, 1, source=source, seed=0))
            assert not torch.equal(light, strong)
            assert (light - data.pixels(images)).abs().mean() > 1e-3
